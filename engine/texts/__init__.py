"""Text in, token ids out: files, datasets, the standard library."""
