"""The calibration text, cut into windows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import TextError, UsageError
from engine.texts.corpora import SURE_CHARACTERS, Text
from engine.texts.tokenizing import encoded


@dataclass(frozen=True, eq=False)
class CalibrationWindows:
    """Windows of a text, chosen by a seed."""

    text: Text
    ids: Tensor
    """int64 ``[windows, seq_len]``."""
    seed: int

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return self.ids.numel()

    @property
    def sha256(self) -> str:
        """Hash of the tokens."""
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()


def cut_calibration(
    tokenizer: Any, text: Text, seq_len: int, tokens: int, seed: int, bos: int | None = None
) -> CalibrationWindows:
    """``tokens // seq_len`` windows from all over a text, at least one, fewer if it has no more.

    The text is split into excerpts that are each long enough for a window, in an order shuffled by
    the seed; the first window of every excerpt is taken, then the second, and so on. So windows do
    not overlap, and a long text is not tokenised whole. No special token is added but ``bos``, if
    given, which every window begins with.

    Raises:
        UsageError: the number of tokens is 0.
        TextError: the text does not fill a window.
    """
    if tokens < 1:
        raise UsageError(f"{tokens} calibration tokens requested: use at least one window")
    wanted, own = max(1, tokens // seq_len), seq_len - (bos is not None)
    excerpts = _excerpts(text.content, seq_len * SURE_CHARACTERS)
    random.Random(seed).shuffle(excerpts)
    windows: list[Sequence[int]] = []
    later: list[list[int]] = []
    for excerpt in excerpts:
        if len(windows) == wanted:
            break
        ids = encoded(tokenizer, excerpt, special_tokens=False)
        if len(ids) >= own:
            windows.append(ids[:own])
            later.append(ids[own:])
    while len(windows) < wanted and any(len(ids) >= own for ids in later):
        long_enough = [ids for ids in later if len(ids) >= own]
        windows += [ids[:own] for ids in long_enough[: wanted - len(windows)]]
        later = [ids[own:] for ids in long_enough]
    if not windows:
        raise TextError(
            f"calibration text {text.name}: it does not fill one window of {seq_len} tokens: "
            "give a longer one with --calib, or a smaller --seq-len"
        )
    rows = torch.tensor(windows)
    if bos is not None:
        rows = torch.cat([rows.new_full((len(rows), 1), bos), rows], 1)
    return CalibrationWindows(text, rows, seed)


def _excerpts(content: str, length: int) -> list[str]:
    """Split the text into excerpts of about ``length`` characters, at line ends if possible."""
    excerpts = []
    start = 0
    while start < len(content):
        end = start + length
        if end < len(content):
            line = content.find("\n", end, end + length)
            end = end if line < 0 else line + 1
        excerpts.append(content[start:end])
        start = end
    return excerpts
