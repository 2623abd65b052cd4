"""Calibration statistics of a layer's inputs: sums and maxima over tokens.

``X Xᵀ`` (GPTQ, AWQ), and the largest and the mean magnitude of every input channel (SmoothQuant,
AWQ, LLM.int8()). Each is a sum or a maximum, so texts can be added one after another, and
separately gathered statistics can be merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.quant.rows import row_chunks

TOKENS = 4096
"""Tokens that are cast to float32 and multiplied at a time."""


@dataclass(eq=False)
class InputStatistics:
    """Statistics of the inputs ``[tokens, in]`` of one layer, or of layers that share an input.

    Takes ``4 · in²`` bytes, and temporarily a float32 copy of `TOKENS` tokens.
    """

    gram: Tensor
    """``X Xᵀ = Σ x xᵀ`` over tokens, float32 ``[in, in]``."""
    maximum: Tensor
    """Greatest ``|x|`` of every channel, float32 ``[in]``."""
    magnitude: Tensor
    """``Σ |x|`` of every channel, float64 ``[in]``."""
    tokens: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> InputStatistics:
        """Statistics of no tokens yet, for inputs of ``width`` channels."""
        return cls(
            torch.zeros(width, width, device=device),
            torch.zeros(width, device=device),
            torch.zeros(width, dtype=torch.float64, device=device),
        )

    @property
    def width(self) -> int:
        """Number of input channels."""
        return len(self.maximum)

    def mean(self, name: str = "layer") -> Tensor:
        """Mean ``|x|`` of every channel, float32 ``[in]``.

        Raises:
            FormatError: No tokens were added.
        """
        self.check(name)
        return (self.magnitude / self.tokens).to(torch.float32)

    def add(self, inputs: Tensor, name: str = "layer") -> None:
        """Add tokens ``[…, in]`` of any floating dtype, a few at a time.

        Raises:
            FormatError: They have another width, or non-finite values; in that case none of them is
                added.
        """
        if inputs.dim() == 0 or inputs.shape[-1] != self.width:
            raise FormatError(
                f"{name}: calibration inputs of shape {list(inputs.shape)} do not fit a layer of "
                f"{self.width} input channels"
            )
        rows = inputs.detach().reshape(-1, self.width)
        chunks = range(0, len(rows), TOKENS)
        for start in chunks:
            broken = len(rows[start : start + TOKENS]) - _finite_rows(rows[start : start + TOKENS])
            if broken:
                raise FormatError(
                    f"{name}: {broken} of its calibration inputs are NaN or infinite: calibrate in "
                    "another dtype (--dtype bf16 or fp32) or on another text"
                )
        for start in chunks:
            part = rows[start : start + TOKENS].to(self.gram.device, torch.float32)
            self.gram.addmm_(part.T, part)
            sizes = part.abs()
            torch.maximum(self.maximum, sizes.amax(0), out=self.maximum)
            self.magnitude += sizes.sum(0, dtype=torch.float64)
        self.tokens += len(rows)

    def merge(self, other: InputStatistics, name: str = "layer") -> None:
        """Add separately gathered statistics, as if their tokens had been added here.

        Raises:
            FormatError: The width differs.
        """
        if other.width != self.width:
            raise FormatError(
                f"{name}: statistics of {other.width} input channels do not fit {self.width}"
            )
        self.gram += other.gram.to(self.gram.device)
        torch.maximum(self.maximum, other.maximum.to(self.maximum.device), out=self.maximum)
        self.magnitude += other.magnitude.to(self.magnitude.device)
        self.tokens += other.tokens

    def check(self, name: str = "layer", width: int | None = None) -> None:
        """Check that there are statistics to calibrate with.

        Raises:
            FormatError: No tokens were added, a sum is not finite, or the layer's ``width``
                differs.
        """
        if self.tokens == 0:
            raise FormatError(
                f"{name}: no calibration token reached it: use a longer calibration text, or "
                "a format that needs none (an expert may be chosen by no token)"
            )
        if width is not None and width != self.width:
            raise FormatError(
                f"{name} has {width} input channels, its calibration statistics {self.width}"
            )
        # A diagonal that is finite bounds the rest: |Σ x y| ≤ √(Σ x² Σ y²).
        if not (self.gram.diagonal().isfinite().all() and self.maximum.isfinite().all()):
            raise FormatError(f"{name}: its calibration statistics are not finite")


def output_error(difference: Tensor, gram: Tensor) -> float:
    """``tr(ΔW H ΔWᵀ) = Σ ‖ΔW x‖²`` of a difference ``[out, in]`` of weights, ``H = X Xᵀ``.

    The squared error of a layer's output over all calibration tokens: equation 1 of GPTQ (Frantar
    et al. 2022, arXiv 2210.17323). The products are float32, the sum is float64.
    """
    total = 0.0
    for rows in row_chunks(difference):
        part = difference[rows].to(torch.float32)
        total += float(((part @ gram) * part).sum(dtype=torch.float64))
    return total


def _finite_rows(rows: Tensor) -> int:
    lo, hi = rows.aminmax()
    if lo.isfinite() and hi.isfinite():
        return len(rows)
    return int(rows.isfinite().all(-1).sum())
