"""What predicts: models and their layers, scoring and generating with them, and the device they run
on.
"""
