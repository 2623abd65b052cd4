"""``+imatrix``: the importance of inputs, as llama.cpp's importance matrices have it.

The importance of an input channel is the mean of its squares over the calibration tokens, ``E[x²]``
(``IMatrixCollector::collect_imatrix`` in ``tools/imatrix/imatrix.cpp``). A search for scales and
codes counts each squared error by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.quant.input_statistics import InputStatistics


def importance(statistics: InputStatistics, name: str = "layer") -> Tensor:
    """``E[x²]`` of every channel, float32 ``[in]``.

    Raises:
        FormatError: No tokens were added, or a sum is not finite.
    """
    statistics.check(name)
    return statistics.gram.diagonal().to(torch.float32) / statistics.tokens


def importance_of_experts(experts: Sequence[InputStatistics], name: str = "layer") -> Tensor:
    """``[experts, in]``; 1 for every input of an expert that no token reached, as llama.cpp has it.

    Raises:
        FormatError: A sum is not finite.
    """
    return torch.stack(
        [
            importance(each, name) if each.tokens else torch.ones_like(each.maximum)
            for each in experts
        ]
    )
