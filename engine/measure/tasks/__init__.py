"""Does a recipe still answer what the reference answers? Tasks scored by both, side by side."""
