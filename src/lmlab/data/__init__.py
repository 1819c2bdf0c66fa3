"""Text to batches: corpora, tokenizers, shards."""
