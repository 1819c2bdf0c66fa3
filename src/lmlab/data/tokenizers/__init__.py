"""How text becomes numbers: one module per tokenizer."""
