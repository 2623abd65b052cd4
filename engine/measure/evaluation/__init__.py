"""Scores recipes: divergence, the reference, recipe runs, cached boundary states."""
