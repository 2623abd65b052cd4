"""Perplexity of a recipe on several texts, and by position in their windows."""
