"""Matrix products on a GPU as exact as their dtype is."""

from __future__ import annotations

import torch


def use_exact_products() -> None:
    """Turn off what trades digits for speed, for the whole process.

    TF32 leaves 10 bits of a float32 product, and some images turn it on by an environment variable;
    convolutions use it by default. In 16 bits partial sums may be rounded before they are added up.
    The effects that are measured lie below either.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
