"""Language models: one module per model."""
