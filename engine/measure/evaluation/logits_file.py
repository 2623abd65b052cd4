"""llama.cpp's logits file: what ``llama-perplexity --kl-divergence-base FILE`` writes.

``_logits_``, then ``n_ctx``, ``n_vocab`` and ``n_chunk`` as int32, the tokens ``[n_chunk, n_ctx]``
as int32, then for every chunk a row for each position from ``n_ctx / 2`` to ``n_ctx − 2``: a scale
and the least logarithm as float32, and ``n_vocab`` codes of 16 bits, padded to an even number.
``log p = scale · code + least``; what is more than 16 nats below the first choice is cut there.

Source: ``perplexity``, ``kl_divergence`` and both ``log_softmax`` of llama.cpp's
``tools/perplexity/perplexity.cpp``, as of llama-cpp-python 0.3.36. The file is not trusted: its
size must be exactly what its header says.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from engine.errors import TextError
from engine.measure.evaluation.divergence import Positions
from engine.texts.windows import Windows

MAGIC = b"_logits_"
CUT = 16.0
"""Nats below the first choice from which on a logit is cut, and below 0 from which on a
probability does not count."""
LARGEST = 1 << 24
"""A context or a vocabulary that no model has."""
_HEADER = struct.Struct("<8s3i")


@dataclass(frozen=True, eq=False)
class LogitsFile:
    """A file's header and tokens; its probabilities are read one chunk at a time."""

    path: Path
    vocabulary: int
    windows: Windows
    """Its chunks; the targets that count are those of their second half."""

    @property
    def counted(self) -> int:
        """Positions of a chunk that it has probabilities for."""
        return self.windows.targets

    @property
    def sha256(self) -> str:
        """Hash of the whole file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def log_probs(self, chunk: int) -> Tensor:
        """Logarithms of the probabilities, ``[positions, vocabulary]`` float32.

        Args:
            chunk: which window; its positions are the last `counted` before the last token.

        Raises:
            TextError: the file was changed or cannot be read.
        """
        size = self.counted * _row(self.vocabulary) * 2
        start = _HEADER.size + 4 * self.windows.tokens + chunk * size
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                data = stream.read(size)
        except OSError as error:
            raise TextError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            _refuse(self.path, f"ends within chunk {chunk}")
        rows = np.frombuffer(data, "<u2").reshape(self.counted, _row(self.vocabulary))
        scale_least = np.ascontiguousarray(rows[:, :4]).view("<f4")
        if not np.isfinite(scale_least).all() or (scale_least[:, 0] < 0).any():
            _refuse(self.path, f"has a scale in chunk {chunk} that is negative or not finite")
        scale, least = scale_least[:, :1], scale_least[:, 1:]
        return torch.from_numpy(rows[:, 4 : 4 + self.vocabulary].astype(np.float32) * scale + least)


def read_logits(path: Path) -> LogitsFile:
    """Read the header and the tokens of a file.

    Raises:
        TextError: it cannot be read, or is not such a file; the message says what is wrong.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TextError(f"{path} is no regular file: expected a logits file of llama.cpp")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(_HEADER.size)
            if len(head) < _HEADER.size or not head.startswith(MAGIC):
                _refuse(path, "does not begin with _logits_")
            _, context, vocabulary, chunks = _HEADER.unpack(head)
            if not (4 <= context <= LARGEST and 2 <= vocabulary <= LARGEST and chunks > 0):
                _refuse(path, f"has {chunks} chunks of {context} tokens out of {vocabulary}")
            counted = context - 1 - context // 2
            whole = _HEADER.size + chunks * (4 * context + 2 * counted * _row(vocabulary))
            if size != whole:
                _refuse(path, f"has {size:,} bytes, and its header says {whole:,}")
            tokens = np.frombuffer(stream.read(4 * chunks * context), "<i4")
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror or error}") from error
    ids = torch.from_numpy(tokens.astype(np.int64)).view(chunks, context)
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        _refuse(path, f"has a token outside its vocabulary of {vocabulary}")
    return LogitsFile(path, vocabulary, Windows(ids, counted))


def write_header(out: BinaryIO, windows: Windows, vocabulary: int) -> None:
    """Begin a file: what is before the probabilities.

    Args:
        out: at its start.
        windows: any; of each, the second half is written.
        vocabulary: tokens that the logits are of.
    """
    out.write(_HEADER.pack(MAGIC, windows.seq_len, vocabulary, windows.count))
    out.write(windows.ids.numpy().astype("<i4").tobytes())


def write_chunk(out: BinaryIO, logits: Iterable[Tensor]) -> None:
    """Append one window.

    Args:
        out: after the windows before.
        logits: float32 ``[positions, vocabulary]``, of all positions from ``seq_len // 2`` to
            ``seq_len − 2``, in as many parts as is convenient.
    """
    for part in logits:
        out.write(encoded(part).tobytes())


def encoded(logits: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """Rows as they are stored, ``[positions, 4 + vocabulary]`` padded to an even number.

    Every step is in float32, as llama.cpp has it, so that codes are equal to the last bit.
    """
    rows = logits.float().cpu()
    most, least = rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True)
    least = torch.maximum(least, most - CUT)
    sums = (rows - most).exp().double().sum(-1, keepdim=True)
    log_sum = sums.log().float()
    scale = (most - least) / 65535.0
    codes = torch.where(rows > least, (rows - least) * (1.0 / scale), 0.0).round()
    found = np.zeros((len(rows), _row(rows.shape[-1])), "<u2")
    found[:, :2] = scale.numpy().astype("<f4").view("<u2")
    found[:, 2:4] = (least - most - log_sum).numpy().astype("<f4").view("<u2")
    found[:, 4 : 4 + rows.shape[-1]] = codes.nan_to_num_(0.0).clamp_(0, 65535).numpy()
    return found


def against_file(log_probs: Tensor, logits: Tensor, targets: Tensor) -> Positions:
    """A model against the probabilities of a file, as llama.cpp sums them.

    Args:
        log_probs: the file's, ``[positions, vocabulary]`` float32.
        logits: the model's, the same shape, or of a padded vocabulary.
        targets: the next token at each position, ``[positions]``.
    """
    width = log_probs.shape[-1]
    logits = logits[..., :width].float()
    lse = torch.logsumexp(logits.double(), -1, keepdim=True)
    other = logits.double() - lse
    base = log_probs.double()
    counts = base > -CUT
    kl = torch.where(counts, base.exp() * (base - other), 0.0).sum(-1)
    at = targets.unsqueeze(-1)
    nll = -base.gather(-1, at).squeeze(-1)
    dnll = -other.gather(-1, at).squeeze(-1) - nll
    agree = log_probs.argmax(-1) == logits.argmax(-1)
    return Positions(nll, dnll, kl, agree)


def _row(vocabulary: int) -> int:
    """Numbers of 16 bits in a row."""
    return 2 * ((vocabulary + 1) // 2) + 4


def _refuse(path: Path, why: str) -> NoReturn:
    raise TextError(
        f"{path} {why}: it is no logits file of llama.cpp, or a damaged one; make it again with "
        "llama-perplexity --kl-divergence-base or with --save-logits"
    )
