"""Where in a block the normalisation is applied: one module per placement."""
