"""On disk: facts, journals, past sessions, where they lie."""
