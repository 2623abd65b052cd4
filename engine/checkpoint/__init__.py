"""Reads checkpoints on disk: safetensors headers, shards, lazy tensors; reports what is wrong."""

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.containers import open_checkpoint
from engine.checkpoint.dequantised_rows import DequantisedRows, dequantised_rows
from engine.checkpoint.groups import fused_groups
from engine.checkpoint.headers import TensorInfo, read_header
from engine.checkpoint.layers import (
    DiskLayer,
    is_other_sense,
    list_layers,
    read_expert,
    read_layer,
)
from engine.checkpoint.rows import StoredRows, stored_rows
from engine.checkpoint.unlisted import remarks

__all__ = [
    "Checkpoint",
    "DequantisedRows",
    "DiskLayer",
    "StoredRows",
    "TensorInfo",
    "dequantised_rows",
    "fused_groups",
    "is_other_sense",
    "list_layers",
    "open_checkpoint",
    "read_expert",
    "read_header",
    "read_layer",
    "remarks",
    "stored_rows",
]
