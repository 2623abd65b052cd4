"""Prompts continued by the reference and by a recipe: what goes wrong, and which layers cure it."""
