"""Where text comes from: one module per corpus."""
