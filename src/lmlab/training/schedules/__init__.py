"""How the learning rate moves over a run: one module per schedule."""
