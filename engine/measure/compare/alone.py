"""Finished checkpoints by themselves: what their files tell where no original is at hand."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer
from engine.measure.compare.artefact import open_finished, opened_alone
from engine.measure.compare.by_logits import score_by_logits
from engine.measure.compare.stored import stored_layer
from engine.measure.counts import JobCounts
from engine.measure.evaluation.logits_file import read_logits
from engine.service.jobs import Steps
from engine.store import keys
from engine.workspace import Opened


def look_at_files(opened: Opened, artefacts: Sequence[str], job: str, logits: str = "") -> Steps:
    """Look at finished checkpoints one by one, and run them if there are probabilities to meet.

    Args:
        opened: one of them, whose store has what is known.
        artefacts: folders, GGUF files or hub ids.
        job: id, for progress.
        logits: a logits file of llama.cpp that each is run against; none if empty.

    Yields:
        `ArtefactOpened`, `Learned` with `StoredLayer` and `ArtefactTable` facts, `Progress`.

    Raises:
        CheckpointError: one cannot be read.
    """
    counts = JobCounts(job=job)
    file = read_logits(Path(logits)) if logits else None
    follow = opened.settings.follow_links
    found = [open_finished(each, follow_links=follow) for each in artefacts]
    for checkpoint, rows in found:
        yield opened_alone(checkpoint, rows.values())
    for checkpoint, rows in found:
        yield from stored_facts(opened, checkpoint, rows, counts)
        if file is not None:
            yield from score_by_logits(opened, checkpoint, lambda: None, file, counts)
    result = p.Comparison(tuple(checkpoint.fingerprint for checkpoint, _ in found))
    return msgspec.structs.replace(counts.outcome(), result=result)


def stored_facts(
    opened: Opened, checkpoint: Checkpoint, rows: Mapping[str, DiskLayer], counts: JobCounts
) -> Generator[p.AnyEvent | None, None, None]:
    """What each layer of a finished checkpoint tells by itself; from the store where it is there.

    Args:
        opened: the checkpoint whose store has what is known.
        checkpoint: the finished one.
        rows: its layers, by name.
        counts: of the job.
    """
    mine = keys.Files(checkpoint.fingerprint)
    found = {name: keys.StoredLayer(on=mine, layer=name) for name in rows}
    addresses = {name: key.address for name, key in found.items()}
    known = opened.known(list(addresses.values()))
    yield from counts.found(list(known), list(known.values()))
    left = [name for name, address in addresses.items() if address not in known]
    stage = counts.stage("comparing", len(left))
    for done, name in enumerate(left):
        yield stage.step(done, name)
        fact = counts.timed("compare_s", partial(stored_layer, checkpoint, rows[name]))()
        # What cannot be read is not looked up: it may be mended, or the disk be back.
        key = msgspec.structs.replace(found[name], refused=fact.refused)
        yield counts.learnt(key.address, fact)
