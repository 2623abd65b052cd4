"""Errors of a weight in formats, on a GPU: through pinned buffers there, and nothing back but sums.

For formats that the compiled pass does not know, whose searches and tables are slow on a processor.
The same code runs on the CPU, without buffers that are pinned and streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.measure.weights.chunks import rows_of, spans
from engine.measure.weights.errors import WeightErrors, errors_of
from engine.quant.quantize import dequantized

TILE_BYTES = 32 << 20
"""Bytes of a pinned buffer; there are two."""


@torch.no_grad()
def device_errors(
    weight: Tensor, formats: list[Format], scale_dtype: str, layer: str, device: str
) -> Iterator[p.LayerError]:
    """The error of a layer in each format, as facts.

    One format's ``Ŵ`` is on the device beside the weight. Sums are read back once for each format.

    Args:
        weight: on the CPU.
        formats: can hold its shape.
        device: where it is quantised.

    Raises:
        torch.OutOfMemoryError: the device has no room for both.
    """
    there = moved(weight, torch.device(device))
    for format in formats:
        try:
            approx = dequantized(there, format, getattr(torch, scale_dtype), name=layer)
        except FormatError as failure:
            yield p.LayerError(layer, str(format), refused=str(failure))
        else:
            yield p.LayerError(layer, str(format), compared(there, approx).fact)
            del approx


def moved(weight: Tensor, device: torch.device) -> Tensor:
    """A copy of a weight on a device, made a tile at a time.

    While one pinned buffer is copied to the device, the other is filled.
    """
    cuda = device.type == "cuda"
    there = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    source, target = weight.detach().contiguous().view(-1), there.view(-1)
    size = max(1, min(TILE_BYTES // weight.element_size(), source.numel()))
    buffers = [torch.empty(size, dtype=weight.dtype, pin_memory=cuda) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2)] if cuda else []  # type: ignore[no-untyped-call]
    stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
    if stream is not None:  # the memory may still be read by what it held before
        stream.wait_stream(torch.cuda.current_stream(device))
    for turn, start in enumerate(range(0, source.numel(), size)):
        part = source[start : start + size]
        buffer = buffers[turn % 2][: len(part)]
        if cuda and turn > 1:
            copied[turn % 2].synchronize()
        buffer.copy_(part)
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            target[start : start + size].copy_(buffer, non_blocking=cuda)
            if cuda:
                copied[turn % 2].record()
    if stream is not None:
        torch.cuda.current_stream(device).wait_stream(stream)
        stream.synchronize()  # the buffers are given back
    return there


def compared(weight: Tensor, approx: Tensor) -> WeightErrors:
    """`engine.measure.weights.reconstruction.compare`, which waits for the device once."""
    rows, approx_rows = rows_of(weight), rows_of(approx)
    sums = torch.zeros(4, dtype=torch.float64, device=weight.device)
    farthest = torch.zeros((), dtype=torch.float64, device=weight.device)
    for span in spans(rows):
        chunk = rows[span].to(torch.float64)
        finite = chunk.isfinite()
        gap = approx_rows[span].to(torch.float64).sub_(chunk).abs_().where(finite, 0.0)
        chunk = chunk.where(finite, 0.0)
        sums += torch.stack(
            [
                chunk.square().sum(),
                gap.square().sum(),
                gap.sum(),
                finite.sum(dtype=torch.float64),
            ]
        )
        farthest = torch.maximum(farthest, gap.amax())  # which keeps a NaN
    signal, noise, distance, entries, largest = [*sums.tolist(), float(farthest)]
    return errors_of(signal, noise, distance, largest, int(entries))
