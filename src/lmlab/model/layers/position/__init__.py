"""How a model knows the order of tokens: one module per position encoding."""
