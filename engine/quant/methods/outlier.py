"""``+outlier6``: LLM.int8(), channels with large inputs kept in 16 bits.

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, section 3.2, equation 8): input channels with a
magnitude of at least the threshold are multiplied in 16 bits, all others in 8. A channel counts as
``int8_vectorwise_quant`` of bitsandbytes has it, ``|x| ≥ threshold`` for any token. bitsandbytes
looks at every batch anew; here the calibration text decides, once. Ranges of the 8-bit weights
leave the kept channels out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.channel_scales import only_weights
from engine.quant.quantize import stored_form
from engine.quant.scales import in_stored_dtype
from engine.quant.stored import StoredWeight


@dataclass(frozen=True, eq=False)
class Split:
    """A weight ``[out, in]`` or ``[experts, out, in]`` with some channels beside the codes."""

    rest: StoredWeight
    """Codes of all channels; those kept stand for 0."""
    columns: Tensor
    """int64 ``[kept]``, ascending."""
    kept: Tensor
    """``[…, out, kept]`` in 16 bits."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``, worked out in float32 and cast last."""
        found = self.rest.approx()
        found[..., self.columns] = self.kept.to(torch.float32)
        return found.to(dtype)


def outlier_columns(maximum: Tensor, threshold: float) -> Tensor:
    """Input channels whose greatest ``|x|`` is at least the threshold, int64, ascending."""
    return (maximum >= threshold).nonzero().flatten()


def split_outliers(
    weight: Tensor,
    statistics: InputStatistics,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str = "weight",
) -> Split:
    """Keep channels with outliers in 16 bits, and round the others.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``; not modified.
        statistics: Of its input.
        fmt: ``int8`` with ``+outlier`` and its threshold.
        scale_dtype: The dtype of scales and of the kept channels.
        name: The tensor, for messages.

    Raises:
        FormatError: Another format, no tokens were taken in, something is not finite or does not
            fit, or a scale or a kept weight is too large for its dtype.
    """
    threshold = next((m.value for m in fmt.methods if m.name == "outlier"), None)
    if threshold is None:
        raise FormatError(f"{name}: {fmt} has no '+outlier'")
    statistics.check(name, weight.shape[-1])
    weight = weight.detach()
    if not weight.isfinite().all():
        raise FormatError(f"{name}: some of its weights are NaN or infinite")
    columns = outlier_columns(statistics.maximum, threshold).to(weight.device)
    kept = in_stored_dtype(weight[..., columns], scale_dtype, fmt, name)
    rest = weight.to(torch.float32, copy=True)
    rest[..., columns] = 0
    return Split(stored_form(rest, only_weights(fmt), scale_dtype, name), columns, kept)
