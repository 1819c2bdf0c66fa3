"""What predicts: models and their layers, scoring and generating with them, the device they run
on.
"""
