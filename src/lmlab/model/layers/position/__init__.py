"""How a model knows where a token stands: one module per kind of position."""
