"""A configuration as one plain file of Python, made of the lab's own source."""
