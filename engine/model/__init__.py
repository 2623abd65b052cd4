"""A live transformers model, seen as blocks and layers; resuming, swapping weights, memory."""
