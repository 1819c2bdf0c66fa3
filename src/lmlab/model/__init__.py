"""What predicts: models and their layers, scoring, generation, the device."""
