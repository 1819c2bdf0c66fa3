"""One page about a run, or several beside each other."""
