"""A recipe as a checkpoint on disk that other programs load."""

from engine.export.checkpoint import Exported, NotExportable, export_checkpoint, why_not_exported

__all__ = ["Exported", "NotExportable", "export_checkpoint", "why_not_exported"]
