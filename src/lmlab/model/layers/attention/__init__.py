"""How a token sees the tokens before it: one module per attention."""
