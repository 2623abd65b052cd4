"""Finished checkpoints against a file of probabilities that another run of the original left.

The file is llama.cpp's (`engine.measure.evaluation.logits_file`): its tokens are the windows, and
its probabilities the reference, so that its runs and ours are compared with the same one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine import protocol as p
from engine.checkpoint import Checkpoint
from engine.errors import EngineError, TextError
from engine.measure.block_loop import through_blocks
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Positions
from engine.measure.evaluation.divergence_table import divergence_table
from engine.measure.evaluation.logits_file import (
    LogitsFile,
    against_file,
    write_chunk,
    write_header,
)
from engine.measure.preemption import repeated
from engine.model.lanes import Lane
from engine.model.load import load_network, load_tokenizer
from engine.model.memory_tiers import TieredMemory
from engine.model.network import Network
from engine.service.in_thread import in_thread
from engine.store import keys
from engine.texts.bos import adds_bos
from engine.texts.windows import Windows
from engine.workspace import Loaded, Opened

STEP = 64
"""Positions whose logits are in memory at once."""
Events = Generator[p.AnyEvent | None, None, None]


def score_by_logits(
    opened: Opened,
    checkpoint: Checkpoint,
    settle: Callable[[], None],
    file: LogitsFile,
    counts: JobCounts,
) -> Events:
    """Run a finished checkpoint on the tokens of a file, and compare it with its probabilities.

    Args:
        opened: the original, or one of the finished ones; its tokenizer says whether windows begin
            with BOS, as llama.cpp has it.
        checkpoint: the finished one.
        settle: decides how its weights are read, where an original is at hand.
        file: the reference.
        counts: of the job.

    Yields:
        `Learned` with an `ArtefactTable`, `Progress`.

    Raises:
        TextError: the file is of another vocabulary, or its windows are too long for the model.
    """
    settings = opened.settings
    digest = file.sha256
    mine, original = checkpoint.fingerprint, opened.files.fingerprint
    key = keys.ArtefactTable(
        on=keys.Files(mine),
        logits=digest,
        dtype=settings.dtype or "",
        device=settings.device,
        original="" if mine == original else original,
    ).address
    known = opened.known([key])
    if known:
        yield from counts.found(list(known), list(known.values()))
        return

    def load(_: Callable[[p.Progress], None]) -> Network:
        settle()
        return load_network(
            checkpoint.folder,
            checkpoint=checkpoint,
            device=settings.device,
            dtype=settings.dtype,
            budget=settings.memory_budget,
            trust_remote_code=settings.trust_remote_code,
            follow_links=settings.follow_links,
        )

    network = yield from in_thread("loading", load, wait=False)
    network.should_stop = opened.workspace.should_stop
    tokenizer = _tokenizer(opened)
    _check(network, len(tokenizer), file, checkpoint.name)
    bos = _bos(tokenizer)
    ends = yield from _ends(network, file.windows, bos, counts, "measuring")
    parts: list[Positions] = []
    stage = counts.stage("measuring", file.windows.count)
    with network.at_hand([len(network.blocks)]):  # the head
        for chunk in range(file.windows.count):
            yield stage.step(chunk, checkpoint.name)
            step = counts.timed("measure_s", partial(_against, network, file, chunk, ends))
            parts += yield from repeated(step)
            yield None
    fact = p.ArtefactTable(checkpoint.fingerprint, digest, divergence_table(parts))
    yield counts.learnt(key, fact)


@torch.no_grad()
def _against(network: Network, file: LogitsFile, chunk: int, ends: _Ends) -> list[Positions]:
    windows, log_probs = file.windows, file.log_probs(chunk)
    ids, parts = windows.ids[chunk : chunk + 1], []
    for (a, b), logits in _logits(network, ends(chunk), windows.first):
        mine = log_probs[a - windows.first : b - windows.first]
        parts.append(against_file(mine, logits, ids[0, a + 1 : b + 1]))
    return parts


class _End(NamedTuple):
    """A window behind the last block."""

    ids: torch.Tensor
    """As it was run, ``[1, tokens]``."""
    state: torch.Tensor


_Ends = Callable[[int], _End]
"""Of the windows, by number; in ``no_grad``."""


def _ends(
    network: Network, windows: Windows, bos: int | None, counts: JobCounts, phase: p.Phase
) -> Generator[p.AnyEvent | None, None, _Ends]:
    """Runs windows through the blocks: each when it is asked for, or all of them at once where
    blocks are streamed.

    Args:
        windows: of the text.
        bos: the token that the first of every window is run as, if any.
        counts: of the job.
        phase: for progress.
    """

    def begun(at: int) -> torch.Tensor:
        ids = windows.ids[at : at + 1].clone()
        if bos is not None:
            ids[:, 0] = bos
        return ids.to(network.device)

    def run(at: int) -> _End:
        ids = begun(at)
        return _End(ids, network.final_state(ids, -1, None))

    if not network.streamed:
        return run
    memory = TieredMemory(network.device, 0)
    memory.use_all()
    lanes = [
        Lane(network, begun(at), -1, None, take=lambda _k, state: memory.must_put(state))
        for at in range(windows.count)
    ]
    yield from through_blocks(network, lanes, len(network.blocks), counts, "measure_s", None, phase)
    return lambda at: _End(lanes[at].ids, lanes[at].reached())


def _logits(
    network: Network, at: _End, first: int
) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """Logits of a window from a position on, some positions at a time, on the CPU."""
    begun, last = at
    end = begun.shape[1] - 1
    for a in range(first, end, STEP):
        b = min(a + STEP, end)
        yield (a, b), network.logits(begun, last, (a, b))[0].float().cpu()


def _check(network: Network, tokens: int, file: LogitsFile, name: str) -> None:
    """Refuse a file of another model.

    Args:
        network: of the finished checkpoint; its vocabulary may be padded.
        tokens: of the tokenizer.
        file: of probabilities.
        name: of the checkpoint.
    """
    padded = network.model.get_input_embeddings().weight.shape[0]
    if not min(tokens, padded) <= file.vocabulary <= padded:
        raise TextError(
            f"{name} has {min(tokens, padded)} tokens, and {file.path} probabilities of "
            f"{file.vocabulary}: they are not of the same model"
        )
    most = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and file.windows.seq_len > most:
        raise TextError(
            f"{file.path} has windows of {file.windows.seq_len} tokens, and {name} takes {most}: "
            "make it again with fewer (-c)"
        )


def _tokenizer(opened: Opened) -> Any:
    return load_tokenizer(
        opened.path,
        trust_remote_code=opened.settings.trust_remote_code,
        follow_links=opened.settings.follow_links,
    )


def _bos(tokenizer: Any) -> int | None:
    """The token that llama.cpp puts in place of the first of every window, if it does."""
    return int(tokenizer.bos_token_id) if adds_bos(tokenizer) else None


def save_logits(loaded: Loaded, out: Path, counts: JobCounts) -> Events:
    """Write the original's probabilities on the windows as llama.cpp does.

    Of each window the second half is written, whatever counts here. Where the tokenizer begins
    texts with BOS, the first token of a window is run as BOS, as llama.cpp does.

    Args:
        loaded: the original.
        out: the file; replaced whole or not at all.
        counts: of the job.

    Raises:
        EngineError: it cannot be written.
    """
    network, windows, bos = loaded.network, loaded.windows, _bos(_tokenizer(loaded.opened))
    vocabulary = network.config.get_text_config().vocab_size
    first = windows.seq_len // 2
    ends = yield from _ends(network, windows, bos, counts, "reference")
    stage = counts.stage("reference", windows.count)
    try:
        descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        part = Path(name)
        with os.fdopen(descriptor, "wb") as to:
            try:
                write_header(to, windows, vocabulary)
                with network.at_hand([len(network.blocks)]):  # the head
                    for at in range(windows.count):
                        yield stage.step(at, out.name)
                        step = partial(_window, network, at, first, ends)
                        found = yield from repeated(counts.timed("measure_s", step))
                        write_chunk(to, (each[:, :vocabulary] for each in found))
                to.flush()
                os.fsync(to.fileno())
                part.chmod(0o644)
                part.replace(out)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
    yield p.Notice("info", f"the original's probabilities are in {out}")


@torch.no_grad()
def _window(network: Network, at: int, first: int, ends: _Ends) -> list[torch.Tensor]:
    return [logits for _, logits in _logits(network, ends(at), first)]
