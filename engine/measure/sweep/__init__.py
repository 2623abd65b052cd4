"""Sweeps: every layer changed alone; candidates, exact measurement, top-k, agreement."""
