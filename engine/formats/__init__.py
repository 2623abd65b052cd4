"""Formats as text and numbers: grammar, catalogue, storage, completion. No torch."""
