"""How a larger model takes over a smaller one: one module for each way."""
