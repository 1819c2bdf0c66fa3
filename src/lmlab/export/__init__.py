"""Taking away: what a run becomes outside of the laboratory."""
