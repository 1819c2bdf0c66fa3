"""Runs side by side: studies, what they found, verdicts."""
