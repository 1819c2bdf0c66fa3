"""How a position reads from the positions before it: one module per attention."""
