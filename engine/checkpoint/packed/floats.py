"""Numbers of 4 bits, and scales that are powers of two (OCP Microscaling Formats, E2M1, E8M0)."""

from __future__ import annotations

import torch
from torch import Tensor

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)])
"""The number of each code; bit 3 is the sign."""
_QUARTERS = tuple(code / 4 for code in range(8))
MXINT4 = torch.tensor([*_QUARTERS, *(-value for value in _QUARTERS)])
"""The same of AutoRound's ``mxint4``: quarters from -1.75 to 1.75."""


def powers_of_two(stored: Tensor) -> Tensor:
    """Scales of bytes that hold an exponent plus 127, in float32; NaN for 255, which means NaN."""
    exponents = stored.view(torch.uint8)
    found = torch.ldexp(torch.ones(exponents.shape), exponents.to(torch.int32) - 127)
    return found.masked_fill_(exponents == 255, float("nan"))
