"""Activations that settle before weights learn: what the learning rules that iterate share."""
