"""A loaded transformers model as blocks and layers: resuming, swapping weights, memory."""
