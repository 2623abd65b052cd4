"""Open a checkpoint in named stages; inspect a path before it is opened."""
