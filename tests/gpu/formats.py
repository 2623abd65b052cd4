"""Every format on the device against the processor: the same bits where nothing is added up."""

from __future__ import annotations

from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

VARIANTS = (
    "fp8-e4m3-tensor", "fp8-e4m3-block128", "fp8-e5m2-tensor", "int8-asym", "int3-tensor",
    "int4-g32-sym", "nf4-g32:dq", "kmeans3:sparse=.5%", "e8-2+hadamard", "int4+clip",
    "fp8-e4m3-block128+clip", "mxfp4+clip", "nvfp4+clip", "nf4+clip", "int4+hqq",
    "int4+hadamard", "nvfp4+hadamard", "q4_k+hadamard",
)  # fmt: skip
ADDED_UP = ("kmeans", "e8-2", "_k", "iq4", "+clip", "+hqq", "+hadamard", "q4_1", "q5_1", ":dq")
"""Formats whose scales or codes come from sums: another order of additions may choose others."""
SUMS = 2e-3
"""Relative difference of the error of those."""


def run(options: Options, figures: Recorder) -> None:
    """One row a format: the relative error of what it stands for."""
    import torch

    from engine.formats.catalogue import BASES
    from engine.formats.grammar import parse_format
    from engine.quant.quantize import dequantized

    generator = torch.Generator().manual_seed(0)
    rows, columns = (16, 256) if options.tiny else (512, 2048)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 1 + 8 * (torch.rand(rows, columns, generator=generator) > 0.999)
    for stored in (torch.bfloat16,) if options.tiny else (torch.bfloat16, torch.float16):
        here = weight.to(stored)
        there = here.to(options.device)
        for text in [*BASES, *VARIANTS]:
            if text == "e8-2":
                continue  # takes rotated weights only
            fmt = parse_format(text)
            if fmt.kept:
                continue
            expected = dequantized(here, fmt, stored)
            found = dequantized(there, fmt, stored).cpu()
            unlike = int((found != expected).sum())
            added_up = any(part in text for part in ADDED_UP)
            figures.same(
                f"{text} of {str(stored).removeprefix('torch.')}",
                _error(here, found), _error(here, expected),
                SUMS if added_up and options.device != "cpu" else 0.0,
                note=f"{unlike} of {found.numel()} weights differ" if unlike else "",
            )  # fmt: skip
            if not added_up:
                figures.most(f"{text}: weights that differ", unlike, 0)
    from engine.quant import gguf_gpu

    why = "; ".join(gguf_gpu.refused)
    figures.most("searches of K-quants without a kernel", len(gguf_gpu.refused), 0, note=why)


def _error(weight, approx):  # type: ignore[no-untyped-def]
    """``‖W − Ŵ‖ / ‖W‖`` in float64, on the processor."""
    weight, approx = weight.double(), approx.double()
    return float((weight - approx).norm() / weight.norm())
