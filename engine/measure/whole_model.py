"""Jobs that need every block at once, refused before they begin where blocks are streamed."""

from __future__ import annotations

from engine.errors import UsageError
from engine.model.network import Network


def refuse_streamed(network: Network, what: str, why: str, instead: str = "") -> None:
    """Refuse a job that a model with streamed blocks cannot do in reasonable time.

    Args:
        network: the model.
        what: is asked for, as the subject of a sentence, with its verb's plural.
        why: what it would read, again and again.
        instead: something else that works, for the end of the sentence.

    Raises:
        UsageError: its blocks are streamed.
    """
    if network.streamed:
        raise UsageError(
            f"{what} need the whole model in memory, and its blocks are streamed from disk, {why}: "
            "choose --dtype bf16, a larger --memory-budget, or a device with more memory"
            + (f"; or {instead}" if instead else "")
        )
