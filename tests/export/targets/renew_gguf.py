"""Scores files of every family in llama.cpp, and again here with inputs rounded as it rounds them::

    python -m tests.export.targets.renew_gguf PYTHON

``PYTHON`` is that of an environment with cyllama. For each family there are three files: all in
float32, all layers in float16, and a mix of types. What is written to ``decided/gguf.json`` is the
mean NLL here with exact inputs, here with rounded inputs, and in llama.cpp, and how far single
targets differ between the last two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.checkpoint import list_layers, open_checkpoint
from engine.checkpoint.gguf import GgufCheckpoint, open_gguf
from engine.model.load import load_network, load_tokenizer
from tests import tiny
from tests.checkpoint.gguf.models import FAMILIES, TEXT, build
from tests.export.exporting import export_checkpoint

HERE = Path(__file__).parent
MIX = (
    "q4_k", "q8_0", "q6_k", "q5_1", "q4_0", "q3_k", "bf16", "q5_k", "iq4_xs", "q5_0", "kept",
    "q4_1", "q2_k", "fp16", "iq4_nl", "iq3_s", "iq2_s",
)  # fmt: skip
KINDS = ("f32", "f16", "mix")
TEXTS = (TEXT, " two  spaces", "the quick end <tool> x", "12 345 6789", "")


def sizes(family: str, kind: str) -> dict[str, Any]:
    """Rows that super-blocks of 256 divide, and one block where inputs are rounded.

    Over several blocks a rounding that falls otherwise makes others fall otherwise.
    """
    if family == "gpt2":
        return {"n_embd": 256, "n_layer": 3 if kind == "f32" else 1}
    head = 256 if family.startswith("gemma") else 64
    given: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
    if kind != "f32":
        # llama.cpp wants a block of each kind of attention.
        given["num_hidden_layers"] = {"gemma2": 2, "gemma3": 6}.get(family, 1)
    if family == "qwen3moe":
        given["moe_intermediate_size"] = 256
    if not family.startswith(("phi3", "qwen2")):
        given["head_dim"] = head
    if family == "gemma":
        given["head_dim"] = 64
    if family == "phi3-long":
        factors = [1.0 + 0.01 * i for i in range(32)]
        given["rope_parameters"] = {
            **FAMILIES[family][2]["rope_parameters"], "short_factor": factors,
            "long_factor": [1.5 * each for each in factors],
        }  # fmt: skip
    return given


def recipe_of(folder: Path, kind: str) -> dict[str, str]:
    """The recipe of one of `KINDS`; a tied head and embedding are one tensor."""
    checkpoint = open_checkpoint(folder)
    rows = list_layers(checkpoint)
    if kind == "f32":
        return {}
    if kind == "f16":
        return {row.name: "fp16" for row in rows}
    found = {row.name: MIX[at % len(MIX)] for at, row in enumerate(rows)}
    if any(row.role == "head" and f"{row.name}.weight" not in checkpoint.tensors for row in rows):
        found |= {row.name: "q6_k" for row in rows if row.role in ("head", "embedding")}
    return {name: held for name, held in found.items() if held != "kept"}


def rounded(x: Tensor, type: str) -> Tensor:
    """Inputs as llama.cpp has them before it multiplies by weights of a type (``vec_dot_type``)."""
    if type == "f32":
        return x
    if type in ("f16", "bf16"):
        return x.to({"f16": torch.float16, "bf16": torch.bfloat16}[type]).float()
    if type in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"):
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        d = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.where(d > 0, blocks / d, 0)
        codes = codes.sign() * (codes.abs() + 0.5).floor()
        return (codes * d.half().float()).reshape(x.shape)
    blocks = x.reshape(*x.shape[:-1], -1, 256)
    peak = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(peak != 0, -127 / peak, 0)
    codes = (blocks * inverse).round().clamp_max(127)
    return torch.where(inverse != 0, codes / inverse, 0).reshape(x.shape)


def nll_here(file: Path, ids: Tensor, *, rounding: bool) -> Tensor:
    """NLL of every target, in nats, of a file that is opened by itself."""
    network, stored = load_network(file, device="cpu"), open_gguf(file)
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.model.named_modules():
            if rounding and isinstance(module, nn.Linear | Conv1D):
                type = _type(stored, name)
                hook = module.register_forward_pre_hook(_rounding(type))
                hooks.callback(hook.remove)
        logits = network.model(ids).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )


def _type(stored: GgufCheckpoint, module: str) -> str:
    found = stored.stored.get(f"{module}.weight")
    if found is None:  # a tied head
        found = next(each for each in stored.stored.values() if each.name == "token_embd.weight")
    return found.type.name


def _rounding(type: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, given: (rounded(given[0], type), *given[1:])


def measured(family: str, python: str, home: Path) -> dict[str, dict[str, Any]]:
    """Figures of all files of a family."""
    ids = tiny.ids(4, 48)
    files = {kind: home / f"{family}-{kind}.gguf" for kind in KINDS}
    for kind, file in files.items():
        folder = build(family, home / f"{family}-{kind}", **sizes(family, kind))
        export_checkpoint(
            open_checkpoint(folder), recipe_of(folder, kind), file, "gguf", check=True
        )
    request = home / "request.json"
    windows = ids.tolist()
    asked = {
        kind: {"file": str(file), "windows": windows, "texts": TEXTS}
        for kind, file in files.items()
    }
    request.write_text(json.dumps(asked))
    done = subprocess.run(
        [python, str(HERE / "llama_cpp.py"), str(request)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    if "@@@" not in done.stdout:
        raise SystemExit(f"{family}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.split("@@@")[1])
    found: dict[str, Any] = {}
    for kind, file in files.items():
        theirs = torch.tensor(answer["files"][kind]["nll"], dtype=torch.float64)
        exact, near = (nll_here(file, ids, rounding=on) for on in (False, True))
        tokenizer = load_tokenizer(file)
        found[kind] = {
            "targets": len(theirs),
            "exact": round(float(exact.mean()), 7),
            "rounded": round(float(near.mean()), 7),
            "llama.cpp": round(float(theirs.mean()), 7),
            "rms": round(float((theirs - near).square().mean().sqrt()), 7),
            "rms of rounding": round(float((near - exact).square().mean().sqrt()), 7),
            "same tokens": [tokenizer(text).input_ids for text in TEXTS]
            == answer["files"][kind]["tokens"],
        }
    return {"version": answer["version"], **found}


def main() -> None:
    python, *wanted = sys.argv[1:]
    path = HERE / "decided" / "gguf.json"
    known = json.loads(path.read_text()) if path.exists() else {"version": "", "decided": {}}
    for family in wanted or FAMILIES:
        with TemporaryDirectory() as home:
            figures = measured(family, python, Path(home))
        known["version"] = figures.pop("version")
        known["decided"][family] = figures
        sys.stderr.write(f"{family} {json.dumps(figures)}\n")
    path.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
