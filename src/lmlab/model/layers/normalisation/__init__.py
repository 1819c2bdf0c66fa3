"""What keeps the scale of the residual stream under control: one module per normalisation."""
