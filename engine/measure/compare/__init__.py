"""Finished quantised checkpoints, compared with their original."""
