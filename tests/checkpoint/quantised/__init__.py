"""Finished quantised checkpoints of many tools, read without them."""
