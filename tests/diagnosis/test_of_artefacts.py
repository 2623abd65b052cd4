"""What stands out of a finished checkpoint, from made-up comparisons."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.of_artefacts import artefact_findings
from engine.session import Compared


def layer(
    name: str,
    relative: float,
    rounding: p.Rounding = "nearest",
    steps: float = 0.29,
    refused: str = "",
) -> p.ArtefactLayer:
    error = p.WeightError(relative, relative, relative, relative, 0.0)
    return p.ArtefactLayer(
        artefact="f", layer=name, holds="int4-g128", bits=4.25, error=error, rounding=rounding,
        displaced=0.0 if rounding == "nearest" else 0.1, steps=steps,
        refused=refused,
    )  # fmt: skip


def compared(*layers: p.ArtefactLayer, missing: tuple[str, ...] = ()) -> Compared:
    opened = p.ArtefactOpened(
        fingerprint="f", name="n", path="/n", layout="gptq", bytes=1, bits_per_weight=4.25,
        bits_all=4.25, unmatched=missing,
    )  # fmt: skip
    return Compared(opened, {each.layer: each for each in layers})


def score(kl: float, top1: float) -> p.ArtefactScore:
    return p.ArtefactScore(
        artefact="f", nll=3.0, ppl=20.0, ppl_low=19.0, ppl_high=21.0, dnll=0.1, dnll_se=0.01,
        kl=kl, kl_se=0.001, top1=top1, tokens=100,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [0.004, 0.1, 0.25, 0.6])
@pytest.mark.parametrize("rounding", ["nearest", "solved", "same"])
def test_a_clean_one_has_none(bits: float, rounding: p.Rounding) -> None:
    layers = [layer(f"l{i}", bits * (1 + 0.1 * (i % 7)), rounding) for i in range(40)]
    assert artefact_findings(compared(*layers)) == []


def test_one_layer_of_other_weights_is_named() -> None:
    layers = [layer(f"l{i}", 0.1) for i in range(20)]
    (found,) = artefact_findings(compared(*layers, layer("odd", 1.4, "other", 4.3)))
    assert (found.id, found.layer, found.severity) == ("other-weights", "odd", "alert")
    assert "140%" in found.sentence


def test_where_all_are_wrong_it_is_said_once() -> None:
    layers = [layer(f"l{i}", 1.4, "other", 4.0) for i in range(20)]
    (found,) = artefact_findings(compared(*layers))
    assert (found.id, found.layer) == ("other-weights", "")


def test_outputs_that_agree_tell_weights_that_differ_wholly_from_another_parent() -> None:
    layers = [layer(f"l{i}", 1.4, "other", 4.0) for i in range(20)]
    known = compared(*layers)
    known.score = score(kl=0.01, top1=0.95)
    (found,) = artefact_findings(known)
    assert (found.id, found.severity) == ("rotated", "warning")
    assert "outputs agree with the original's (KL·10³ 10, 95% top-1)" in found.sentence
    known.score = score(kl=8.0, top1=0.03)
    (found,) = artefact_findings(known)
    assert found.id == "other-weights"


def test_another_parent_is_recognised_by_many_weights_near_ties() -> None:
    layers = [layer(f"l{i}", 0.1, "other" if i % 2 else "nearest", 0.3) for i in range(20)]
    (found,) = artefact_findings(compared(*layers))
    assert (found.id, found.severity) == ("other-parent", "warning")


def test_what_is_missing_or_unreadable_comes_first() -> None:
    broken = layer("b", math.nan, "other", math.nan, refused="its scale is missing")
    found = artefact_findings(compared(layer("a", 0.1), broken, missing=("c", "d")))
    assert [each.id for each in found] == ["unreadable-layer", "missing-layers"]
    assert "2 layers" in found[1].sentence
    assert "c, d" in found[1].sentence


def test_a_layer_that_wins_much_is_worth_keeping() -> None:
    known = compared(layer("a", 0.1), layer("b", 0.1))
    known.score = score(kl=0.1, top1=0.9)
    known.restored = {
        name: p.LayerRestored(
            artefact="f", layer=name, kl=kl, kl_se=0.001, dnll=kl, dnll_se=0.1, tokens=100
        )
        for name, kl in (("a", 0.04), ("b", 0.001))
    }  # fmt: skip
    (found,) = artefact_findings(known)
    assert (found.id, found.layer, found.severity) == ("worth-keeping", "a", "info")
    assert "40%" in found.sentence


def test_one_mistake_in_many_layers_is_one_finding_and_no_other_parent() -> None:
    broken = [
        msgspec.structs.replace(layer(f"l{i}", 1.0, "other", 1.0), mistake="off-by-one", factor=1.0)
        for i in range(20)
    ]
    (found,) = artefact_findings(compared(*broken))
    assert (found.id, found.severity) == ("off-by-one", "alert")
    assert found.sentence.startswith("20 layers (l0 …) are off by one step")


def test_what_is_declared_otherwise_is_said_once() -> None:
    layers = [
        msgspec.structs.replace(layer(f"l{i}", 0.1), declared="GPTQ v1", read_as="GPTQ v2: why")
        for i in range(3)
    ]
    (found,) = artefact_findings(compared(*layers))
    assert found.id == "declared-otherwise"
    assert "3 layers (l0 …) are declared GPTQ v1 and read as GPTQ v2: why" in found.sentence
