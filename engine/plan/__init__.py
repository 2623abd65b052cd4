"""Numbers into decisions: which format each layer gets within a budget. No tensors."""
