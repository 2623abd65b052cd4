"""On disk: facts, journals, past sessions, and their paths."""
