"""The start screen: choose a checkpoint and a profile."""
