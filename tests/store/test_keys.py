"""Keys of facts: each part counts, and what the version before stored is still found."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from engine import protocol as p
from engine.store import keys

FILES = keys.Files("fingerprint", "code")
PROTOCOL = p.Protocol(
    text="prose.txt", text_sha256="of the text", tokens=1024, seq_len=128, stride=127, windows=8,
    dtype="float32", device="cuda:1", seed=3, draws=4,
)  # fmt: skip
EVALUATION = keys.evaluation(FILES, PROTOCOL, "of the windows")
CALIBRATION = keys.Calibration("of the text", "of the windows", 512, 128, 3, "reference")


def before(kind: str, *, measured: bool = True, **parts: Any) -> str:
    """A key as the version before this module made it, from a dict."""
    if measured:
        parts |= {
            "windows": "of the windows",
            "protocol": {
                "tokens": 1024, "seq_len": 128, "stride": 127, "windows": 8, "dtype": "float32",
                "device": "cuda", "seed": 3, "interval": 0.95,
            },
        }  # fmt: skip
    whole = {"kind": kind, "version": 1, "checkpoint": "fingerprint", "code": "code", **parts}
    return hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()


WITH_FORMAT = {"quantiser": 1, "scale_dtype": "float16"}
CALIBRATED = {
    "text": "of the text", "windows": "of the windows", "tokens": 512, "seq_len": 128, "seed": 3,
    "mode": "reference",
}  # fmt: skip
SAME = {
    "baseline": (keys.Baseline(on=EVALUATION), before("baseline")),
    "control": (keys.Control(on=EVALUATION), before("control", floor="rounded otherwise")),
    "listed weights": (
        keys.ListedWeights(
            on=FILES, layer="a", formats=("int8", "int4-g32"), sigma=4.0, scale_dtype="float16"
        ),
        before(
            "weights", measured=False, layer="a", formats=["int8", "int4-g32"], sigma=4.0,
            **WITH_FORMAT,
        ),
    ),
    "estimate": (
        keys.Estimate(
            on=EVALUATION, layer="a", format="int8", together=("int4-g32", "int8"),
            direction="degrade", draws=4, seed=3, scale_dtype="float16",
        ),
        before(
            "estimate", layer="a", format="int8", estimator=3, together=["int4-g32", "int8"],
            direction="degrade", draws=4, seed=3, **WITH_FORMAT,
        ),
    ),
    "sensitivity": (
        keys.Sensitivity(
            on=EVALUATION, layer="a", format="int8", direction="degrade", scale_dtype="float16"
        ),
        before("sensitivity", layer="a", format="int8", direction="degrade", **WITH_FORMAT),
    ),
    "sensitivity of a block": (
        keys.Sensitivity(
            on=EVALUATION, layer="0", format="int8", direction="restore", scale_dtype="float16",
            by="block", layers=("a", "b"), effort="top:3", calibration=CALIBRATION,
        ),
        before(
            "sensitivity", layer="0", format="int8", direction="restore", by="block",
            layers=("a", "b"), effort="top:3", calibration=CALIBRATED, **WITH_FORMAT,
        ),
    ),
    "recipe": (
        keys.RecipeScore(on=EVALUATION, recipe={"b": "int8", "a": "nf4"}, scale_dtype="float16"),
        before("recipe", recipe={"a": "nf4", "b": "int8"}, **WITH_FORMAT),
    ),
    "additivity": (
        keys.Additivity(
            on=EVALUATION, recipe={"a": "int8"}, scale_dtype="float16", calibration=CALIBRATION
        ),
        before("additivity", recipe={"a": "int8"}, calibration=CALIBRATED, **WITH_FORMAT),
    ),
    "additivity of a restore": (
        keys.Additivity(
            on=EVALUATION, recipe={"a": "int8"}, scale_dtype="float16", direction="restore",
            fewer=64,
        ),
        before(
            "additivity", recipe={"a": "int8"}, direction="restore", fewer=64, **WITH_FORMAT
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_key_is_what_it_was_in_the_version_before(name: str) -> None:
    key, expected = SAME[name]
    assert key.address == expected


def test_facts_of_different_kinds_or_parts_never_share_a_key() -> None:
    estimate = SAME["estimate"][0]
    others = [key for key, _ in SAME.values()]
    others += [
        keys.WeightStatistics(on=FILES, layer="a", sigma=4.0),
        keys.WeightError(on=FILES, layer="a", format="int8", scale_dtype="float16"),
        *(msgspec.structs.replace(estimate, **{name: value}) for name, value in {
            "layer": "b", "format": "nf4", "together": ("int8",), "direction": "restore",
            "draws": 5, "seed": 4, "scale_dtype": "bfloat16", "calibration": CALIBRATION,
            "on": keys.evaluation(FILES, PROTOCOL, "other windows"),
        }.items()),
        msgspec.structs.replace(
            estimate, on=keys.evaluation(keys.Files("other", "code"), PROTOCOL, "of the windows")
        ),
    ]  # fmt: skip
    addresses = {key.address for key in others}
    assert len(addresses) == len(others)


@pytest.mark.parametrize("part", ["text", "text_sha256", "draws"])
def test_a_text_is_known_by_its_tokens(part: str) -> None:
    other = msgspec.structs.replace(PROTOCOL, **{part: 9 if part == "draws" else "other"})
    assert keys.evaluation(FILES, other, "of the windows") == EVALUATION


def test_of_the_device_only_the_kind_counts() -> None:
    other = msgspec.structs.replace(PROTOCOL, device="cuda:0")
    assert keys.evaluation(FILES, other, "of the windows") == EVALUATION
    on_cpu = msgspec.structs.replace(PROTOCOL, device="cpu")
    assert keys.evaluation(FILES, on_cpu, "of the windows") != EVALUATION


def test_a_part_left_out_is_refused() -> None:
    with pytest.raises(TypeError, match="scale_dtype"):
        keys.WeightError(on=FILES, layer="a", format="int8")  # type: ignore[call-arg]


def test_where_the_same_tokens_came_from_does_not_count() -> None:
    other = msgspec.structs.replace(PROTOCOL, text="b", column="content", documents=9, skipped=2)
    assert keys.evaluation(FILES, other, "of the windows") == EVALUATION


def test_activations_with_those_of_modules_are_other_facts_than_those_before() -> None:
    parts = {"layer": "a", "dtype": "float32", "device": "cpu"}
    key = keys.Activations(on=FILES, calibration=CALIBRATION, **parts)
    assert key.address == before("activations", measured=False, calibration=CALIBRATED, **parts)
    assert msgspec.structs.replace(key, modules=True).address != key.address
