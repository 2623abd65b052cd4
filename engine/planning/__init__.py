"""Recipes for a budget, planned from effects and improved by measuring them."""
