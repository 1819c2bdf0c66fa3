"""Where in a block the normalisation stands: one module per placement."""
