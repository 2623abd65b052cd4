"""Numbers about layers: their weights, their activations, and what quantising them costs."""
