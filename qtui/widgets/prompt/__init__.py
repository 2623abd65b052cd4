"""One line to type in, its completions and its verdict."""
