"""Broken checkpoints by the thousand, and what must hold of each.

A sound small checkpoint is changed at random: keys, values and whole branches of its JSON, bytes of
its files, their ends. Opening it and reading every weight must then end in our own error or in
tensors, soon, with no file opened but its own and nothing run.

``python -m tests.faults.fuzzing 1000000`` does so for that many, and prints what it found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.checkpoint import list_layers, open_checkpoint, remarks
from engine.checkpoint.kv_cache import cache_blocks
from engine.checkpoint.layers import read_layer
from engine.errors import EngineError
from engine.model.config import refuse_other_models

SECONDS = 1.0
"""Processor time that a case may take."""


class Random(Protocol):
    """What is used of `random.Random`, which Hypothesis provides too."""

    def randrange(self, start: int, stop: int) -> int: ...
    def choice(self, seq: Any) -> Any: ...
    def random(self) -> float: ...


# -- sound checkpoints ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A checkpoint as JSON and bytes."""

    config: dict[str, Any]
    header: dict[str, Any]
    data: bytes


W, H = 32, 64
WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1, "I64": 8}


def base(quantised: dict[str, Any] | None, tensors: dict[str, tuple[str, list[int]]]) -> Base:
    """Two blocks of which some weights are stored in another way."""
    every: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("F16", [16, W])}
    for block in range(2):
        home = f"model.layers.{block}"
        every[f"{home}.input_layernorm.weight"] = ("F16", [W])
        every[f"{home}.self_attn.q_proj.weight"] = ("F16", [W, W])
        if tensors:
            every |= {f"{home}.{name}": each for name, each in tensors.items()}
        else:
            every[f"{home}.mlp.up_proj.weight"] = ("F16", [H, W])
    header, data, given = {}, b"", random.Random(0)
    for name, (dtype, shape) in every.items():
        size = WIDTH[dtype]
        for each in shape:
            size *= each
        # Small halves and floats, whatever their dtype; any codes.
        high = 0x3C if dtype in ("F16", "F32", "BF16", "F8_E4M3") else 0xFF
        content = bytes(given.randrange(0, high) for _ in range(size))
        if name.endswith((".g_idx", ".weight_shape")):
            whole = [i // 16 for i in range(shape[0])] if name.endswith(".g_idx") else [H, W]
            content = b"".join(each.to_bytes(WIDTH[dtype], "little") for each in whole)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + size],
        }
        data += content
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": W, "intermediate_size": H, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 16, "tie_word_embeddings": True,
        "max_position_embeddings": 64, "rope_theta": 1e4, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    if quantised:
        config["quantization_config"] = quantised
    return Base(config, header, data)


UP = "mlp.up_proj"
BASES = {
    "plain": base(None, {}),
    "fp8": base(
        {"quant_method": "fp8", "weight_block_size": [16, 16]},
        {f"{UP}.weight": ("F8_E4M3", [H, W]), f"{UP}.weight_scale_inv": ("F32", [4, 2])},
    ),
    "mxfp4": base(
        {"quant_method": "mxfp4"},
        {
            "mlp.experts.down_proj_blocks": ("U8", [2, H, 1, 16]),
            "mlp.experts.down_proj_scales": ("U8", [2, H, 1]),
        },
    ),
    "gptq": base(
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {"-:.*q_proj": {}}},
        {
            f"{UP}.qweight": ("I32", [W // 8, H]),
            f"{UP}.qzeros": ("I32", [2, H // 8]),
            f"{UP}.scales": ("F16", [2, H]),
            f"{UP}.g_idx": ("I32", [W]),
        },
    ),
    "awq": base(
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
        {
            f"{UP}.qweight": ("I32", [W, H // 8]),
            f"{UP}.qzeros": ("I32", [2, H // 8]),
            f"{UP}.scales": ("F16", [2, H]),
        },
    ),
    "compressed-tensors": base(
        {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {
                "targets": ["Linear", "re:.*up_proj"],
                "weights": {"num_bits": 4, "type": "int", "group_size": 16, "symmetric": True,
                            "strategy": "group"}}},
            "ignore": ["lm_head", "re:.*q_proj"],
        },
        {
            f"{UP}.weight_packed": ("I32", [H, W // 8]),
            f"{UP}.weight_scale": ("F16", [H, 2]),
            f"{UP}.weight_shape": ("I64", [2]),
        },
    ),
    "hqq": base(
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        {
            f"{UP}.W_q": ("U8", [H // 2, W]),
            f"{UP}.scale": ("F16", [H, 1]),
            f"{UP}.zero": ("F16", [H, 1]),
        },
    ),
    "bitsandbytes": base(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {
            f"{UP}.weight": ("U8", [H * W // 2, 1]),
            f"{UP}.weight.absmax": ("F32", [H * W // 64]),
            f"{UP}.weight.quant_map": ("F32", [16]),
            f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
        },
    ),
}  # fmt: skip

READ = ("plain", "fp8", "mxfp4", "gptq")
"""Those that are sound in every number; the others begin as what their tools write, in outline."""


# -- changes --------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 15, 31, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53,
    2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, "", "x", "4", "F32", "F4", "BOOL",
    "../../etc/passwd", "/dev/zero", "re:(a+)+$", "(?:.|..)*[^.]x", "((", "__import__('os')",
    "\x1b[2J", "\ud800", [], [0], [1, 2, 3], [[]], {}, {"a": {}}, ["re:.*"], "one.safetensors",
    "gptq", "awq", "fp8", "mxfp4", "hqq", "compressed-tensors", "torchao", "load", "model.layers",
)  # fmt: skip


def changed(given: Random, value: Any, depth: int = 0) -> Any:
    """JSON with one thing in it changed."""
    inner = isinstance(value, dict | list) and value and given.random() < 0.85
    if not inner or depth > 6:
        return given.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, what = given.choice(keys), given.randrange(0, 10)
    copied = dict(value) if isinstance(value, dict) else list(value)
    if what == 0:
        del copied[key]
    elif what == 1 and isinstance(copied, dict):
        copied[f"{key}{given.choice(('', '.x', 's', '_inv', '.weight'))}"] = copied[key]
    elif what == 1:
        copied.append(copied[key])
    elif what == 2 and isinstance(copied, dict):
        copied[given.choice(keys)] = copied.pop(key)
    else:
        copied[key] = changed(given, value[key], depth + 1)
    return copied


def spoilt(given: Random, content: bytes) -> bytes:
    """Bytes of which a few are changed, or the end is missing, or more come after it."""
    room, what = bytearray(content), given.randrange(0, 8)
    if what == 0 and room:
        return bytes(room[: given.randrange(0, len(room))])
    if what == 1:
        return bytes(room) + bytes(given.randrange(1, 40))
    for _ in range(given.randrange(1, 5)):
        if room:
            room[given.randrange(0, len(room))] = given.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B))
    return bytes(room)


def write(folder: Path, given: Random) -> str:
    """A broken checkpoint in a folder; returns what it was made from, and how."""
    name = given.choice(list(BASES))
    found = BASES[name]
    config, header, data = found.config, found.header, found.data
    index: Any = {"weight_map": dict.fromkeys(header, "one.safetensors")}
    kinds = {given.randrange(0, 6) for _ in range(given.randrange(1, 3))}
    sharded = 5 in kinds or given.randrange(0, 8) == 0
    if 0 in kinds:
        config = changed(given, config)
    if 1 in kinds or 2 in kinds:
        header = changed(given, header)
    if 3 in kinds:
        data = spoilt(given, data)
    if 5 in kinds:
        index = changed(given, index)
    text = json.dumps(header).encode("utf-8", "replace")
    length = len(text) if given.randrange(0, 40) else given.choice((0, 1, 7, 2**31, 2**63, 10**8))
    content = length.to_bytes(8, "little") + text + data
    if 4 in kinds:
        content = spoilt(given, content)
    for file in list(folder.iterdir()):
        file.unlink()
    (folder / ("one.safetensors" if sharded else "model.safetensors")).write_bytes(content)
    if sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return f"{name}, changes {sorted(kinds)}"


# -- what must hold -------------------------------------------------------------------------------


@dataclass
class Watch:
    """What was opened and started, from an audit hook that is never removed."""

    on: bool = False
    home: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            if isinstance(given[0], str | bytes):
                path = os.fsdecode(given[0])
                if not path.startswith((self.home, *LIBRARIES)):
                    self.seen.append(path)
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            self.seen.append(f"{event} {given[0]!r}")


LIBRARIES = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/usr", "/proc"})
_watch = Watch()
_hooked: list[bool] = []


@contextlib.contextmanager
def watched(home: Path) -> Iterator[Watch]:
    """Inside, what is opened outside of a folder or started is noted."""
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked.append(True)
    _watch.on, _watch.home, _watch.seen = True, str(home), []
    try:
        yield _watch
    finally:
        _watch.on = False


def open_and_read(folder: Path) -> None:
    """Everything that is done with a checkpoint before a model is built.

    Raises:
        EngineError: it is refused.
    """
    checkpoint = open_checkpoint(folder)
    rows = list_layers(checkpoint)
    remarks(checkpoint, rows)
    cache_blocks(checkpoint.config)
    refuse_other_models(folder / "config.json", checkpoint.config)
    for row in rows:
        found = read_layer(checkpoint, row)
        assert tuple(found.shape) == row.shape, f"{row.name} is {found.shape}, not {row.shape}"
    assert checkpoint.fingerprint


def fault(folder: Path, given: Random, opened: Callable[[Path], None] = open_and_read) -> str:
    """Break a checkpoint, open it, and say what did not hold; empty if all did."""
    made = write(folder, given)
    begun = time.thread_time()
    with watched(folder) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of casts of numbers that are not finite
        try:
            opened(folder)
        except EngineError as error:
            if not str(error).strip():
                return f"{made}: an error without words"
        except Exception:  # noqa: BLE001 - whatever it is, it is the fault that is looked for
            return f"{made}: {traceback.format_exc()}"
    taken = time.thread_time() - begun
    if taken > SECONDS:
        return f"{made}: {taken:.2f} s"
    return f"{made}: {watch.seen}" if watch.seen else ""


def main() -> int:
    """Break many checkpoints, one after the other."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has its own")
    asked = parser.parse_args()
    faults: Counter[str] = Counter()
    begun, done = time.monotonic(), 0
    print(f"{asked.count} checkpoints, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        for seed in range(asked.seed, asked.seed + asked.count):
            found = fault(Path(name), random.Random(seed))
            done += 1
            if found:
                where = found.strip().splitlines()[-1][:120]
                if not faults[where]:
                    print(f"seed {seed}: {found}", flush=True)
                faults[where] += 1
            if done % 10_000 == 0:
                rate = done / (time.monotonic() - begun)
                print(f"{done} done, {faults.total()} faults, {rate:.0f}/s", flush=True)
    print(f"{done} checkpoints: {faults.total()} faults of {len(faults)} kinds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
