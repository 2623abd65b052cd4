"""The bundled checkpoint: a small trained Llama, and the script that trained it."""

from pathlib import Path

DEMO_PATH = Path(__file__).parent / "checkpoint"
"""Folder of the demo checkpoint, in the ordinary Hugging Face layout."""
