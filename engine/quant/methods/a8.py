"""``+a8``: inputs rounded to 8-bit integers, a scale for every token.

``scale = max|x| / 127.5`` over the channels of a token, codes −128 to 127, ties to even, in
float32: the dynamic symmetric token quantisation of compressed-tensors (its preset ``W8A8``), after
ZeroQuant (Yao et al. 2022, arXiv 2206.01861, section 4.1). With ``:static`` one scale for all
tokens comes from calibration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.quant.rows import finite_and_broken, restored
from engine.quant.scales import EMPTY_SCALE


def quantized_tokens(inputs: Tensor, scale: Tensor | None = None) -> Tensor:
    """Inputs ``[…, in]`` as 8-bit integers stand for them, in their own dtype.

    A token of zeros stays as it is. Values that are not finite come back as they are and count for
    no range. Takes a few float32 copies of the inputs.

    Args:
        inputs: Of any floating dtype; not modified.
        scale: A single number, by `static_scale`; None for one of each token.
    """
    if not inputs.numel():
        return inputs.clone()
    finite, broken = finite_and_broken(inputs)
    if scale is None:
        # A tensor on the device: CUDA turns division by a number into a product, which differs.
        half = torch.tensor(127.5, device=finite.device)
        scale = finite.abs().amax(-1, keepdim=True) / half
    step = scale.masked_fill(scale == 0, EMPTY_SCALE)
    approx = (finite / step).clamp_(-128, 127).round_() * step
    return restored(approx, broken, inputs).to(inputs.dtype)


def static_scale(maximum: Tensor) -> Tensor:
    """The scale of all tokens, float32, from the greatest ``|x|`` of every channel.

    Raises:
        FormatError: It is not finite.
    """
    greatest = maximum.to(torch.float32).amax()
    if not greatest.isfinite():
        raise FormatError("the greatest calibration input is not finite: '+a8:static' has no scale")
    return greatest / torch.tensor(127.5, device=greatest.device)
