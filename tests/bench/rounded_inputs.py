"""Why a checkpoint with scaled and rounded inputs scores 10⁻⁴ beside what was measured.

    python -m tests.bench.rounded_inputs [MODEL --format int8+smooth.5+a8 --tokens 8192]

The engine multiplies what a norm gives by ``w'/w``; a checkpoint's norm holds ``w'`` itself. The
products differ in the last bit, and an input beside a tie is then rounded to the other side.
compressed-tensors divides a token by ``max|x| / 127.5``: where its largest input is negative, that
input is 127.5 steps from 0, a tie in any precision.

Plain transformers scores the exported checkpoint on the engine's windows in both orders, in float32
and in float64, as it is and with scales larger by 1/512, which leaves no largest input at a tie.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization.lifecycle import forward
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine import protocol as p
from engine.client import in_process
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import baseline
from engine.measure.evaluation.reference import reference_of
from engine.profiles import load_profile
from engine.store.facts import FactStore
from tests.bench.against_exact import through
from tests.bench.truth import machine
from tests.drive import ended, facts, load, until


def scored(model: nn.Module, windows: Tensor) -> Tensor:
    """NLL of every window, nats per token, float64."""
    found = []
    with torch.no_grad():
        for ids in windows.split(1):
            logits: Tensor = model(input_ids=ids).logits[0, :-1]
            each = nn.functional.cross_entropy(logits.double(), ids[0, 1:])
            found.append(each)
    return torch.stack(found)


@contextmanager
def larger(factor: float) -> Iterator[None]:
    """Scales of tokens are larger by a factor in compressed-tensors."""

    def scales(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        scale, zero = compute_dynamic_scales_and_zp(*given, **named)
        return scale * factor, zero

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "compute_dynamic_scales_and_zp", scales)
        yield


@contextmanager
def multiplied_after(model: nn.Module, original: nn.Module) -> Iterator[int]:
    """Norms hold their weights of before; the layers after them multiply by the quotient."""
    before = dict(original.named_parameters())
    undo: list[Any] = []
    changed = 0
    for name, module in model.named_modules():
        if not name.endswith("layernorm"):
            continue
        old, new = before[f"{name}.weight"].detach(), module.weight.detach().clone()
        old = old.to(new.dtype)
        if torch.equal(old, new):
            continue
        changed += 1
        # As the engine has it: a factor in float32.
        gain = (new.double() / old.double()).to(new.dtype)
        module.weight.data = old
        undo.append((module, new))
        block = model.get_submodule(name.rpartition(".")[0])
        kinds = ("q_proj", "k_proj", "v_proj") if "input" in name else ("gate_proj", "up_proj")
        for each, layer in block.named_modules():
            if each.endswith(kinds):
                undo.append(
                    layer.register_forward_pre_hook(lambda _m, given, g=gain: (given[0] * g,))
                )
    yield changed
    for each in undo:
        if isinstance(each, tuple):
            each[0].weight.data = each[1]
        else:
            each.remove()


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--format", default="int8+smooth.5+a8")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=256)
    given = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    settings = load_profile("quick").settings(
        "quick", tokens=given.tokens, seq_len=given.seq_len, device="cpu", dtype="fp32"
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        loaded = load(given.model, FactStore(Path(scratch) / "facts.sqlite"), settings)
        through(baseline(loaded, JobCounts()))
        windows = reference_of(loaded).windows.ids
        source = loaded.opened.path
        client = in_process(given.model)
        client.send(p.Open(given.model, settings))
        client.send(p.Evaluate(format=given.format))
        score = facts(until(client, ended("evaluate")), p.RecipeScore)[-1]
        assert isinstance(score, p.RecipeScore)
        client.send(p.Export(out=str(out), to="checkpoint", format=given.format))
        end = until(client, ended("export"))[-1]
        assert isinstance(end, p.JobEnded)
        assert end.status == "done", end.message
        client.close()
        print(f"engine, float32: {score.nll:.9f}")
        original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        for dtype, factor in product((torch.float32, torch.float64), (1, 1 + 2**-9)):
            model = model.to(dtype)
            with larger(factor):
                shipped = scored(model, windows)
                with multiplied_after(model, original) as changed:
                    other = scored(model, windows)
            apart = other - shipped
            error = float(apart.std()) / len(apart) ** 0.5
            print(
                f"{str(dtype)[6:]}, scales × {factor}: as shipped {float(shipped.mean()):.9f}, "
                f"multiplied after the {changed} norms {float(other.mean()):.9f}, apart "
                f"{float(apart.mean()):.2e} ± {error:.1e}, a window at most "
                f"{float(apart.abs().max()):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
