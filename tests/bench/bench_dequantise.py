"""Layers of 4 bits dequantised: packed bytes a second, beside what reading them takes, in one run.

4096 × 4096 in groups of 128, two threads. K-quants of GGUF beside the gguf package's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoint.quantised.fixtures import MODULE, WEIGHT, save

WIDTH, GROUP, ROUNDS = 4096, 128, 7
GROUPS = WIDTH // GROUP


def words(*shape: int) -> Tensor:
    """Random words."""
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def gptq() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """GPTQ, without act-order."""
    tensors = {
        "qweight": words(WIDTH // 8, WIDTH),
        "qzeros": words(GROUPS, WIDTH // 8),
        "scales": torch.rand(GROUPS, WIDTH).half(),
        "g_idx": (torch.arange(WIDTH) // GROUP).int(),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}
    return tensors, config


def awq() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AWQ GEMM."""
    tensors = {
        "qweight": words(WIDTH, WIDTH // 8),
        "qzeros": words(GROUPS, WIDTH // 8),
        "scales": torch.rand(GROUPS, WIDTH).half(),
    }
    return tensors, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}


def packed() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """compressed-tensors' pack-quantized, symmetric."""
    tensors = {
        "weight_packed": words(WIDTH, WIDTH // 8),
        "weight_scale": torch.rand(WIDTH, GROUPS).bfloat16(),
        "weight_shape": torch.tensor([WIDTH, WIDTH]),
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return tensors, {"quant_method": "compressed-tensors", "config_groups": groups}


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@pytest.mark.parametrize("made", [gptq, awq, packed])
def test_packed_bytes_a_second(made: Callable[[], Any], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    tensors, config = made()
    checkpoint = save(tmp_path, {f"{MODULE}.{k}": v for k, v in tensors.items()}, config)
    weight = checkpoint.quantised[WEIGHT]
    size = weight.bits / 8e6
    file = tmp_path / "model.safetensors"
    turns = [(seconds(weight.read), seconds(file.read_bytes)) for _ in range(ROUNDS)]
    ours, reading = (statistics.median(column) for column in zip(*turns, strict=True))
    print(
        f"\n{made.__name__}: {size / ours:.0f} MB/s of packed bytes; reading the file takes "
        f"{reading / ours:.1%} of that time"
    )


K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_beside_the_gguf_package(kind: str) -> None:
    """Random blocks; what is NaN in the one is NaN in the other."""
    import gguf
    import numpy as np

    from engine.quant.gguf_stored import decoded

    torch.set_num_threads(2)
    known = gguf.GGMLQuantizationType[kind.upper()]
    block, size = gguf.GGML_QUANT_SIZES[known]
    rows = torch.randint(0, 256, (WIDTH, WIDTH // block * size), dtype=torch.uint8)
    plain = rows.numpy()
    ours, theirs = decoded(kind, rows), gguf.quants.dequantize(plain, known)
    assert np.array_equal(ours.numpy(), theirs, equal_nan=True)
    turns = [
        (
            seconds(lambda: decoded(kind, rows)),
            seconds(lambda: gguf.quants.dequantize(plain, known)),
        )
        for _ in range(ROUNDS)
    ]
    mine, package = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"\n{kind}: {mine / package:.2f} times as long as the gguf package")
    assert mine <= 2 * package
