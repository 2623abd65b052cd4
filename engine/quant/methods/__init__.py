"""Ways to find better codes, one file each."""
