"""A text's token ids as equal windows.

The convention of the GPTQ, AWQ and SmoothQuant papers: windows that do not overlap, the mean over
``seq_len − 1`` targets of each. With a stride, windows overlap and only the last ``stride`` targets
of each count. Both come from `cut`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import TextError, UsageError


@dataclass(frozen=True)
class Windows:
    """Evaluation text as equal windows."""

    ids: Tensor
    """``[windows, seq_len]``, int64, on the CPU."""
    targets: int
    """How many of the last targets of each window count."""

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.ids.shape[0]

    @property
    def seq_len(self) -> int:
        """Tokens in a window."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens in all windows together."""
        return self.ids.numel()

    @property
    def sha256(self) -> str:
        """Hash of the token ids."""
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()

    @property
    def first(self) -> int:
        """First position whose prediction counts; the last is ``seq_len − 2``."""
        return self.seq_len - 1 - self.targets


def cut(
    ids: Tensor, seq_len: int, tokens: int, stride: int | None = None, bos: int | None = None
) -> Windows:
    """Cut a row of tokens into windows.

    Args:
        ids: ``[tokens of the text]``.
        seq_len: tokens in a window.
        tokens: how many to use: ``tokens // seq_len`` windows, or as many as the text has.
        stride: None for windows that do not overlap.
        bos: a token that every window begins with, before ``seq_len − 1`` of the text.

    Raises:
        TextError: the text is shorter than one window.
        UsageError: stride or seq_len is out of range.
    """
    if seq_len < 2:
        raise UsageError(f"a window of {seq_len} token has no target: --seq-len must be 2 or more")
    if stride is not None and not 1 <= stride < seq_len:
        raise UsageError(f"--stride {stride} must be between 1 and seq_len − 1 = {seq_len - 1}")
    have, own = ids.numel(), seq_len - (bos is not None)
    if have < own:
        raise TextError(
            f"the text has {have} tokens, fewer than one window of {seq_len}: "
            f"give a longer --text or a --seq-len of at most {max(have, 2)}"
        )
    step = stride or own
    fit = (have - own) // step + 1
    asked = max(1, tokens // seq_len)
    starts = torch.arange(min(fit, asked)) * step
    rows = torch.stack([ids[s : s + own] for s in starts.tolist()])
    if bos is not None:
        rows = torch.cat([rows.new_full((len(rows), 1), bos), rows], 1)
    return Windows(rows.to(torch.int64), stride or seq_len - 1)


def shuffled(windows: Windows, seed: int) -> Windows:
    """The same windows in random order, so that the first few are a sample of the whole text.

    Neighbouring windows resemble each other: on part of a text in order, figures would look more
    certain than they are.
    """
    order = torch.randperm(windows.count, generator=torch.Generator().manual_seed(seed))
    return Windows(windows.ids[order], windows.targets)
