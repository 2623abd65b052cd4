"""Calibration sets and evaluation texts as windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import TextError, UsageError
from engine.measure.calibrating.own_samples import own_samples
from engine.measure.calibration.text import cut_calibration
from engine.measure.counts import JobCounts
from engine.measure.evaluation.reference import Reference, reference_of
from engine.store import keys
from engine.texts.bos import bos_token
from engine.texts.corpora import calibration_set, calibration_text, evaluation_text, first_tokens
from engine.texts.sets import NAMED
from engine.texts.text import Text
from engine.texts.windows import cut, shuffled
from engine.workspace import Loaded

OWN = "own"
"""The set that the model writes."""

Events = Generator[p.AnyEvent | None, None, None]


@dataclass(frozen=True, eq=False)
class SetWindows:
    """A calibration set, cut into windows of one length."""

    name: str
    """As it was asked for."""
    text: Text
    ids: Tensor
    """int64 ``[samples, seq_len]``; the first of them are what fewer samples would be."""
    seed: int

    @property
    def samples(self) -> int:
        """Windows."""
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens of each."""
        return self.ids.shape[1]

    def key(self, first: int, end: int) -> keys.Calibration:
        """The part of a key for results of some of the windows."""
        ids = self.ids[first:end]
        return keys.Calibration(
            text=self.text.sha256,
            windows=hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest(),
            tokens=ids.numel(),
            seq_len=self.seq_len,
            seed=self.seed,
            mode="reference",
        )


@dataclass(frozen=True, eq=False)
class EvaluationText:
    """A text that every set is judged on."""

    name: str
    """As it was asked for; the session's own text by its own name."""
    text: Text
    reference: Reference
    evaluation: keys.Evaluation
    rest: Tensor
    """Tokens of the text that are not evaluated, int64: what ``eval`` calibrates on, where no part
    of the text is for calibration anyway."""


def evaluation_texts(
    loaded: Loaded, asked: tuple[str, ...], tokenizer: Any
) -> list[EvaluationText]:
    """The texts that sets are judged on; the session's own if none is named.

    Args:
        loaded: the model.
        asked: as ``--text`` takes them.
        tokenizer: of the model.

    Raises:
        TextError: one cannot be read, or does not fill a window.
    """
    if not asked:
        return [_own_text(loaded, tokenizer)]
    return [_text(loaded, each, tokenizer, len(asked)) for each in dict.fromkeys(asked)]


def _own_text(loaded: Loaded, tokenizer: Any) -> EvaluationText:
    asked = loaded.settings.text
    text = evaluation_text(asked, demo=loaded.opened.demo, notify=_nothing, tokenizer=tokenizer)
    rest = _rest(loaded, text, loaded.windows.tokens, tokenizer)
    name = asked or text.name
    return EvaluationText(name, text, reference_of(loaded), loaded.evaluation, rest)


def _text(loaded: Loaded, asked: str, tokenizer: Any, count: int) -> EvaluationText:
    settings, opened = loaded.settings, loaded.opened
    text = evaluation_text(asked, demo=opened.demo, notify=_nothing, tokenizer=tokenizer)
    seq_len, bos = loaded.windows.seq_len, bos_token(tokenizer) if settings.bos else None
    special = text.special_tokens and not settings.bos
    wanted = max(settings.tokens, seq_len)
    ids = torch.tensor(first_tokens(tokenizer, text.content, wanted, special_tokens=special))
    try:
        windows = cut(ids, seq_len, settings.tokens, settings.stride, bos)
    except TextError as error:
        raise TextError(f"--text {asked}: {error}") from error
    windows = shuffled(windows, settings.seed)
    rest = _rest(loaded, text, windows.tokens, tokenizer)
    if windows.sha256 == loaded.windows.sha256:
        return EvaluationText(asked, text, reference_of(loaded), loaded.evaluation, rest)
    protocol = msgspec.structs.replace(
        loaded.protocol,
        text=text.name,
        text_sha256=text.sha256,
        column=text.column,
        documents=text.documents,
        skipped=text.skipped,
        tokens=windows.tokens,
        seq_len=windows.seq_len,
        stride=windows.targets,
        windows=windows.count,
    )
    network = loaded.network
    evaluation = keys.evaluation(opened.files, protocol, windows.sha256, network.unlike_names())
    reference = Reference(network, windows, loaded.batch_tokens, loaded.budget() // (2 * count))
    return EvaluationText(asked, text, reference, evaluation, rest)


def _rest(loaded: Loaded, text: Text, used: int, tokenizer: Any) -> Tensor:
    """Tokens after those that are evaluated, as many as calibrating may take."""
    wanted = used + loaded.settings.calib_tokens
    ids = first_tokens(tokenizer, text.content, wanted, special_tokens=False)
    return torch.tensor(ids[used:], dtype=torch.int64)


def _nothing(sentence: str) -> None:
    """Remarks about an evaluation text were made when the session opened it, or are repeated."""


def set_windows(
    loaded: Loaded,
    asked: str,
    samples: int,
    seq_len: int,
    texts: list[EvaluationText],
    tokenizer: Any,
    counts: JobCounts,
) -> Generator[p.AnyEvent | None, None, SetWindows]:
    """The windows of a set, at most so many.

    Args:
        loaded: the model.
        asked: a name of the command; ``eval:TEXT`` for what is held out of an evaluation text.
        samples: windows.
        seq_len: tokens of each.
        texts: that are evaluated.
        tokenizer: of the model.
        counts: of the job.

    Raises:
        TextError: the set cannot be read, or does not fill a window.
    """
    settings, demo = loaded.settings, loaded.opened.demo
    seed, bos = settings.seed, bos_token(tokenizer) if settings.bos else None
    text, ids = Text(asked, ""), None
    if asked == "random":
        ids = _random(samples, seq_len, len(tokenizer), seed)
    elif asked == OWN:
        stage = counts.stage("sampling", seq_len)
        drawing = own_samples(
            loaded.network, samples, seq_len, seed, _vocabulary(loaded, tokenizer), stage.step
        )
        ids = yield from drawing
    elif asked.startswith("eval:"):
        judged = next(each for each in texts if f"eval:{each.name}" == asked)
        text, ids = _held_out(loaded, judged, samples, seq_len, tokenizer)
    else:
        notices: list[str] = []
        text = calibration_set(asked, demo=demo, notify=notices.append, tokenizer=tokenizer)
        for sentence in notices:
            yield p.Notice("warning", sentence)
    if ids is None:
        try:
            ids = cut_calibration(tokenizer, text, seq_len, samples * seq_len, seed, bos).ids
        except TextError as error:
            said = str(error).replace("with --calib, or a smaller --seq-len", "or a smaller one")
            raise TextError(f"the set {asked}: {said}") from error
    elif bos is not None:
        ids = ids.clone()
        ids[:, 0] = bos
    if len(ids) < samples:
        yield p.Notice(
            "warning",
            f"the set {asked} fills only {len(ids)} windows of {seq_len} tokens, not {samples}",
        )
    return SetWindows(asked, text, ids, seed)


def _vocabulary(loaded: Loaded, tokenizer: Any) -> int:
    known = loaded.network.config.get_text_config().vocab_size
    return int(min(known, len(tokenizer)))


def _random(samples: int, seq_len: int, tokens: int, seed: int) -> Tensor:
    """Uniform tokens: no text at all, the worst that a method can be calibrated on."""
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + each) for each in range(samples)]
    return torch.stack([torch.randint(tokens, (seq_len,), generator=draw) for draw in draws])


def _held_out(
    loaded: Loaded, judged: EvaluationText, samples: int, seq_len: int, tokenizer: Any
) -> tuple[Text, Tensor | None]:
    """What of an evaluation text's domain is not evaluated.

    The part for calibration of a named set, or of the session's default text; of any other text,
    what comes after the tokens that are evaluated.
    """
    own, demo = judged.name, loaded.opened.demo
    if own in NAMED:
        return calibration_set(own, demo=demo, notify=_nothing, tokenizer=tokenizer), None
    if loaded.settings.text is None and judged.evaluation == loaded.evaluation:
        return calibration_text(None, demo=demo, notify=_nothing, tokenizer=tokenizer), None
    count = min(samples, len(judged.rest) // seq_len)
    if not count:
        raise UsageError(
            f"--sets eval: the text {own} has only {len(judged.rest):,} tokens after the "
            f"{judged.reference.windows.tokens:,} that are evaluated, fewer than one window of "
            f"{seq_len}: evaluate fewer with --tokens"
        )
    # Windows from all over the rest, as of any other set: not only its beginning.
    every = judged.rest[: len(judged.rest) // seq_len * seq_len].view(-1, seq_len)
    order = torch.randperm(
        len(every), generator=torch.Generator().manual_seed(loaded.settings.seed)
    )
    return Text(f"rest of {judged.text.name}", judged.text.content), every[order[:count]]
