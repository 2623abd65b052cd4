"""Live quantisation diagnostics of causal language models, in a terminal.

`qtui.open` is `engine.open`: a checkpoint in a notebook or a script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine import open as open

__all__ = ["open"]


def __getattr__(name: str) -> object:
    if name == "open":
        import engine

        return engine.open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
