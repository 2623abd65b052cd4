"""One file per form of a runtime; each imports the runtime and the standard library alone."""
