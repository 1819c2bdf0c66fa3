"""A folder that Hugging Face's transformers load: an architecture of theirs, or code of its own."""
