"""One run judged and looked into: measures and probes."""
