"""What takes a run away: to other tools, or as one plain file of Python."""
