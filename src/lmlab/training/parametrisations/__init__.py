"""How initial weights and learning rates follow a model's width: one module per parametrisation."""
