"""How tokens become vectors: one module per embedding."""
