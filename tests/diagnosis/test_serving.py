"""The verdict's mix runs where it is to: on serving kernels, or in what an export target holds."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine.diagnosis.serving import Serving, by_kernels, kernels_of
from engine.diagnosis.verdict import MOST, Verdict, verdict
from engine.errors import UsageError
from engine.export.held import refused, weights_of
from engine.export.serving import serving
from engine.export.target import target_named, targets
from engine.formats.kernels import kernels_for
from engine.report.verdicts import sentence
from engine.session import Session
from tests.diagnosis.test_verdict import LAYERS, body, total
from tests.plan.test_proposal import known

EVERY = (
    "int3-g128", "int4-g128", "int5-g128", "int6-g128", "int8", "fp8-e4m3", "nf4", "q4_0", "q8_0",
)  # fmt: skip


def judged(session: Session, format: str, where: Serving | None = None) -> Verdict:
    found = verdict(session, format, where)
    assert found is not None
    return found


def test_without_a_target_the_mix_has_formats_that_some_kernel_takes() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    found = judged(session, "int4-g128")
    assert set(found.mix.values()) == {"int4-g128", "int8"}
    assert all(kernels_for(held, (64, 128)) for held in found.mix.values())
    assert (found.unable, found.to) == (0, "")
    assert found.kernels == ("marlin",)
    assert sentence(found).endswith(", by Marlin")


def test_layers_that_stay_in_a_format_of_their_file_need_its_kernel_too() -> None:
    session = known(layers=LAYERS, formats=("int4-g128",))  # nothing better: some are kept
    assert judged(session, "int4-g128").kernels == ("marlin",)
    session.layers.dtypes = ["q4_k"] * len(session.layers.names)
    session.layers.shapes = [(64, 256)] * len(session.layers.names)
    found = judged(session, "int4-g128")
    assert dict(found.better)["kept"]
    assert set(found.kernels) == {"marlin", "llama.cpp"}
    assert sentence(found).endswith(("by Marlin and llama.cpp", "by llama.cpp and Marlin"))


def test_the_settings_may_allow_what_no_kernel_takes() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    session.settings = msgspec.structs.replace(session.settings, unserved=True)
    assert {"int5-g128", "int6-g128"} & set(judged(session, "int4-g128").mix.values())
    assert by_kernels(session).takes("int5-g128", 0)


def test_a_format_that_no_kernel_takes_is_said_to_be_one() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    found = judged(session, "int3-g128")
    assert found.unable == found.layers == 16
    assert "; no serving kernel takes it" in sentence(found)
    assert set(found.mix.values()) <= {"int3-g128", "int4-g128", "int8"}
    # The layers that stay in it have no kernel, the others Marlin.
    chosen, without = kernels_of(session, found.mix)
    assert chosen == found.kernels == ("marlin",)
    assert without == sum(held == "int3-g128" for held in found.mix.values())


@pytest.mark.parametrize("target", [each.name for each in targets()])
@pytest.mark.parametrize("format", ["int4-g128", "nf4", "q4_0"])
def test_a_target_holds_every_mix_that_is_for_it(target: str, format: str) -> None:
    session = known(layers=LAYERS, formats=EVERY)
    found = judged(session, format, serving(session, target))
    assert found.to == target
    assert refused(target_named(target), weights_of(session), found.mix) == {}
    if found.mix:
        assert total(session, found.mix) <= MOST * found.kl * (1 + 1e-9)
        assert sentence(found).endswith(f", for {target}")


def test_layers_that_the_target_does_not_hold_move_to_formats_that_it_does() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    found = judged(session, "int4-g128", serving(session, "llama-quantize"))
    assert found.unable == 16
    assert "; llama-quantize does not hold it" in sentence(found)
    assert set(found.mix) == set(body(session))
    assert set(found.mix.values()) <= {"q4_0", "q8_0"}


def test_what_has_one_format_for_all_layers_may_leave_some_as_stored() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    found = judged(session, "nf4", serving(session, "bitsandbytes"))
    assert set(found.mix.values()) == {"nf4"}
    left = [name for name in body(session) if name not in found.mix]
    assert found.better == (("kept", len(left)),)
    assert len(left) > 0


def test_where_layers_go_by_kind_all_blocks_change_together() -> None:
    session = known(layers=LAYERS, formats=("int4-g64+hqq", "int8-g64-asym+hqq"))
    where = serving(session, "hqq")
    assert where.takes("int4-g64+hqq", session.index[LAYERS[0]])
    found = judged(session, "int4-g64+hqq", where)
    kinds: dict[str, set[str]] = {}
    for name in body(session):
        kinds.setdefault(name.rpartition(".")[2], set()).add(found.mix.get(name, ""))
    assert all(len(held) == 1 for held in kinds.values())


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(UsageError, match="unknown export target 'nowhere'"):
        serving(known(layers=LAYERS), "nowhere")


def test_the_fewest_kernels_are_named() -> None:
    session = known(layers=LAYERS, formats=EVERY)
    one, two, three = LAYERS[0], LAYERS[1], LAYERS[2]
    assert kernels_of(session, {}) == ((), 0)
    assert kernels_of(session, {one: "int4-g128", two: "fp8-e4m3"}) == (("marlin",), 0)
    both = kernels_of(session, {one: "int4-g128", two: "int8+a8", three: "int3-g128"})
    assert both[1] == 1
    assert both[0][0] == "marlin"
    assert len(both[0]) == 2
    # llama.cpp alone looks embeddings up in a quantised table.
    assert kernels_of(session, {"lm_head": "q4_0"}) == (("llama.cpp",), 0)
    assert math.isfinite(judged(session, "q4_0").kl)
