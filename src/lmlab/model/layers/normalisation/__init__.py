"""What keeps the scale of the residual stream in hand: one module per normalisation."""
