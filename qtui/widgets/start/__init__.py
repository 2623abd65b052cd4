"""Parts of the start screen."""
