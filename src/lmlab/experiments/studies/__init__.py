"""Published comparisons: arms, each many small runs, and the table of what they measured."""
