"""What exact measurements of a model with streamed blocks take, said before the first one."""

from __future__ import annotations

from collections.abc import Sequence

from engine import protocol as p
from engine.measure.sweep.candidates import Candidate, CandidateMeasurement
from engine.model.network import Network
from engine.model.streamed_blocks import StreamedBlocks


def said_of_passes(
    network: Network,
    measuring: CandidateMeasurement,
    todo: Sequence[Candidate],
    format: str,
    *,
    top: bool,
) -> p.Notice | None:
    """How many passes over the blocks measuring takes, and how long reading them; None where no
    block is read.

    Args:
        network: of the measurements.
        measuring: they are made by.
        todo: candidates that are left.
        format: of all of them.
        top: whether it may end early, once the order of those that matter most is known.
    """
    blocks = network.blocks
    if not isinstance(blocks, StreamedBlocks) or not todo:
        return None
    starts = pass_starts(measuring, todo, top=top)
    readings = sum(len(blocks) - max(0, start) for start in starts)
    count = f"{len(starts)} pass{'es' if len(starts) > 1 else ''}"
    seconds = round(readings * blocks.pace)
    about = f", about {max(1, seconds)} s of reading" if blocks.pace else ""
    most = "at most " if top else ""
    return p.Notice(
        "info",
        f"measuring {len(todo)} in {format} takes {most}{count} over the streamed blocks, each "
        f"from the first block that it changes: {readings} blocks read{about}",
    )


def pass_starts(
    measuring: CandidateMeasurement, todo: Sequence[Candidate], *, top: bool
) -> list[int]:
    """The first block of every pass; see `said_of_passes`."""
    left = measuring.micro_batches
    found: list[int] = []
    for group in measuring.groups(todo):
        if top:  # all of a group go on by one micro-batch at a time
            starts = min(each.unit.start for each in group)
            found += [starts] * max(left - len(each.tallies) for each in group)
        else:
            turns = measuring.turns(group, left)
            found += [min(each.unit.start for each in due) for due in turns]
    return found
