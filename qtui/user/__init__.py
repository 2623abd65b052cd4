"""The user's own files: themes, keymap, and what is remembered between runs."""
