"""Ways of looking inside a model while it learned: one module per probe."""
