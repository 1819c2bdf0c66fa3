"""Experiments that are queued, and those that a search chooses."""
