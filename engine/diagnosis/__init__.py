"""What the figures of a session mean: the verdict, and findings with their evidence. No arrays."""
