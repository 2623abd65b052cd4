"""Recipes: changes and their history, built-in recipes, recipe files. No tensors."""
