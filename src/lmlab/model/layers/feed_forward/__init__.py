"""What is computed at each position alone: one module per feed-forward layer."""
