"""What looks at a run and reaches into it: a page, served by the model's own code."""
