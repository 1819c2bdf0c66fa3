"""Noise in weights or activations, and what it did to the loss: for learning rules that need no backward pass."""
