"""Measurements of layers: their weights, their activations, and the cost of quantising them."""
