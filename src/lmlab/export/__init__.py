"""What takes a run away: a configuration as one plain file of Python."""
