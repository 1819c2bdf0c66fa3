"""How the rows of new tokens come about when a model gets another tokenizer: one module each."""
