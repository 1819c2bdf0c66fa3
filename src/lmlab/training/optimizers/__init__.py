"""How gradients become new weights: one module per optimizer."""
