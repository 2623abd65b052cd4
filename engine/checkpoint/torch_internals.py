"""What we use of torch beyond its public interface to read old checkpoints.

torch may rename it: `tests/checkpoint/test_pickles.py` says what stops working without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import UntypedStorage


def file_offset(storage: UntypedStorage) -> int:
    """Where the bytes of a storage begin in its file; loaded with ``map_location="meta"``."""
    found = storage._checkpoint_offset
    assert found is not None
    return found
