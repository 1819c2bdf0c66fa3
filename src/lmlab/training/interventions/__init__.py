"""What may be done to a learning rule on the way: one module per intervention."""
