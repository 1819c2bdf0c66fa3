"""What is computed at each position on its own: one module per feed-forward layer."""
