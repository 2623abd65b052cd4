"""A recipe as a checkpoint on disk that other programs load; see `engine.export.checkpoint`."""
