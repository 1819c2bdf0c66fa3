"""How a loss becomes gradients: one module per learning rule."""
