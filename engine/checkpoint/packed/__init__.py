"""What readers of quantised weights share: which tensors belong together, unpacking, names."""
