"""What llama.cpp itself made of exported files; see `tests.export.targets.renew_gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.gguf.models import FAMILIES

RECORD = json.loads((Path(__file__).parent / "decided" / "gguf.json").read_text())
WITH_GELU = ("gemma", "gemma2", "gemma3", "gpt2")
"""Families whose activation llama.cpp looks up in a table of float16."""


def test_every_family_was_run_by_llama_cpp() -> None:
    assert RECORD["version"].startswith("cyllama ")
    assert set(RECORD["decided"]) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_scores_what_is_scored_here(family: str) -> None:
    found: dict[str, dict[str, Any]] = RECORD["decided"][family]
    control = found["f32"]
    assert control["rms"] < (1e-3 if family in WITH_GELU else 1e-5)
    for kind in ("f32", "f16", "mix"):
        each = found[kind]
        assert each["same tokens"]
        # The mean of differences that roundings of inputs explain, three standard errors of it.
        spread = 3 * (each["rms of rounding"] + control["rms"]) / each["targets"] ** 0.5
        assert abs(each["llama.cpp"] - each["exact"]) < spread
        # One by one: what falls otherwise here and there is of the size of the rounding itself.
        assert each["rms"] < 1.5 * (each["rms of rounding"] + control["rms"])
