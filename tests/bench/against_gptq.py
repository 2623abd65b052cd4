"""One GPTQ implementation that solves the same layer again and again, when it is told to.

    python against_gptq.py NAME FOLDER THREADS

It reads ``weight.pt`` and ``gram.pt`` from the folder; for every line on its standard input it
solves the layer, prints the seconds that took and those of processors (copies made before among
them), and leaves ``NAME.pt`` there. Names: ``ours``; ``paper``, algorithm 1 of arXiv 2210.17323 as
one writes it down; ``llmcompressor`` and ``gptqmodel``, each from an environment that has it.
`bench_gptq` lets them take turns.

Everyone has int4, asymmetric, groups of 128, blocks of 128 columns and a damping of .01 of the mean
diagonal, columns in their own order. What is timed begins with a weight and ``X Xᵀ`` and ends with
``Ŵ`` (ours: with codes, scales and zero points). The scales of llm-compressor come from an observer
that has seen the weight before, which is not timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

GROUP = 128
DAMP = 0.01

Solver = Callable[[Tensor, Tensor, int], tuple[float, Tensor]]
"""From a weight, ``X Xᵀ`` and the number of tokens: seconds, and ``Ŵ``."""


def ours(weight: Tensor, gram: Tensor, tokens: int) -> tuple[float, Tensor]:
    from engine.formats.grammar import parse_format
    from engine.quant.solve import solved_form

    begun = time.perf_counter()
    found = solved_form(weight, gram, parse_format(f"int4-g{GROUP}+gptq"), torch.float16)
    return time.perf_counter() - begun, found.approx()


def paper(weight: Tensor, gram: Tensor, tokens: int) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    W, H = weight.float(), gram.clone()
    columns = W.shape[1]
    Q = torch.zeros_like(W)
    H.diagonal().add_(DAMP * H.diagonal().mean())
    H = torch.cholesky_inverse(torch.linalg.cholesky(H))
    H = torch.linalg.cholesky(H, upper=True)
    for i in range(0, columns, GROUP):
        end = min(i + GROUP, columns)
        lo = W[:, i:end].amin(1).clamp(max=0)
        hi = W[:, i:end].amax(1).clamp(min=0)
        scale = (hi - lo) / 15
        zero = torch.round(-lo / scale)
        E = torch.zeros_like(W[:, i:end])
        for j in range(i, end):
            q = torch.clamp(torch.round(W[:, j] / scale) + zero, 0, 15)
            Q[:, j] = scale * (q - zero)
            E[:, j - i] = (W[:, j] - Q[:, j]) / H[j, j]
            W[:, j:end] -= E[:, j - i, None] * H[j, j:end]
        W[:, end:] -= E @ H[i:end, end:]
    return time.perf_counter() - begun, Q


def llmcompressor(weight: Tensor, gram: Tensor, tokens: int) -> tuple[float, Tensor]:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=False
    )
    groups = weight.float().unflatten(1, (-1, GROUP))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    copies = weight.float()[None], (gram / tokens)[None]  # both are worked in
    begun = time.perf_counter()
    found = quantize_weight(
        *copies, scale[None], zero[None], None, args, blocksize=GROUP, percdamp=DAMP
    )
    return time.perf_counter() - begun, found[0][0]


def gptqmodel(weight: Tensor, gram: Tensor, tokens: int) -> tuple[float, Tensor]:
    from gptqmodel.quantization import GPTQ, QuantizeConfig

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.float()
    config = QuantizeConfig(
        bits=4, group_size=GROUP, sym=False, desc_act=False, act_group_aware=False
    )
    config.damp_percent = DAMP
    solver = GPTQ(layer, config)
    solver.quantizer.configure(perchannel=True)
    solver.H = gram * (2 / tokens)
    solver.nsamples = tokens
    begun = time.perf_counter()
    found = solver.quantize(blocksize=GROUP)
    return time.perf_counter() - begun, found[0]


SOLVERS: dict[str, Solver] = {
    solver.__name__: solver for solver in (ours, paper, llmcompressor, gptqmodel)
}


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    weight, gram = torch.load(folder / "weight.pt"), torch.load(folder / "gram.pt")
    tokens = int((folder / "tokens").read_text())
    small = slice(0, 2 * GROUP)
    with torch.no_grad():
        SOLVERS[name](weight[small, small], gram[small, small].clone(), tokens)
        print("ready", file=sys.stderr, flush=True)
        for _ in sys.stdin:
            begun = time.process_time()
            seconds, found = SOLVERS[name](weight, gram, tokens)
            used = time.process_time() - begun
            torch.save(found.float().cpu(), folder / f"{name}.pt")
            # Libraries print too: ours are the lines that say so.
            print(f"seconds {seconds} {used}", flush=True)


if __name__ == "__main__":
    main()
