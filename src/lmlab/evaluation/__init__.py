"""Measures of a trained model, and the references it is held against."""
