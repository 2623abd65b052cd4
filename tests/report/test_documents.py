"""The JSON that scripts read: its keys are a promise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import protocol as p
from engine.report import json as json_output
from engine.report import schema as s
from engine.report import tables
from engine.report.documents import eval_document, export_document, sweep_document, triage_document
from engine.report.tables import sweep_text
from engine.report.tables.parts import fallback_lines
from engine.session import Session, apply
from tests.qtui import replay as r
from tests.qtui.scripted import whole


def folded(*commands: p.AnyCommand) -> Session:
    """A session in which these were carried out."""
    session = Session()
    for command in (p.Open("demo", r.SETTINGS), *commands):
        for event in whole(command, session):
            apply(session, event)
    return session


def as_json(document: msgspec.Struct) -> dict[str, Any]:
    text = json_output.encode(document)
    assert msgspec.json.decode(text, type=type(document)) == document
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


@pytest.fixture
def triage() -> dict[str, Any]:
    return as_json(triage_document(folded(p.Triage())))


@pytest.fixture
def sweep() -> dict[str, Any]:
    return as_json(sweep_document(folded(p.Sweep()), [r.FORMAT]))


@pytest.fixture
def evaluation() -> dict[str, Any]:
    session = folded(p.Evaluate(format="int4-g128"))
    (score,) = session.scores.values()
    return as_json(eval_document(session, score, "int4-g128"))


PROTOCOL_KEYS = {
    "text", "text_sha256", "tokens", "seq_len", "stride", "dtype", "device", "seed", "draws",
    "interval",
}  # fmt: skip


def test_triage_has_the_keys_of_its_schema(triage: dict[str, Any]) -> None:
    assert triage["schema"] == "qtui.triage/1"
    assert triage.keys() >= {"model", "versions", "layers", "fallbacks", "timings"}
    assert triage["model"] == {
        "name": "demo", "params": 5_800_000, "bytes": 11_600_000, "fingerprint": "f" * 16,
    }  # fmt: skip
    assert len(triage["layers"]) == len(r.names())
    layer = triage["layers"][1]
    assert layer.keys() >= {
        "name", "kind", "block", "shape", "dtype", "outliers", "range_ratio", "waste", "kurtosis",
        "nan", "inf", "zero_rows", "errors",
    }  # fmt: skip
    assert layer["name"] == "model.layers.0.self_attn.q_proj"
    assert layer["kind"] == "q_proj"
    assert layer["block"] == 0
    assert layer["shape"] == [256, 256]
    assert layer["dtype"] == "bfloat16"
    assert layer["outliers"].keys() == {"sigma", "count", "fraction", "max_abs"}
    assert layer["errors"].keys() == {"int3-g128", "int4-g128", "int8"}
    assert layer["errors"]["int8"].keys() == {
        "frobenius", "relative", "max_abs", "mean_abs", "sqnr_db",
    }  # fmt: skip
    assert triage["timings"] == {"read_s": 0.25, "total_s": 1.5}


def test_sweep_has_the_keys_of_its_schema(sweep: dict[str, Any]) -> None:
    assert sweep["schema"] == "qtui.sweep/1"
    assert sweep["direction"] == "degrade"
    assert sweep["resumed"] == 2
    assert sweep["protocol"].keys() >= PROTOCOL_KEYS
    assert sweep["protocol"]["dtype"] == "float32"
    assert sweep["calibration"] == {}
    assert sweep["versions"] == {"qtui": "0.1.0"}
    assert sweep["baseline"].keys() == {"nll", "ppl"}
    assert sweep["control"].keys() >= {"max_abs_dnll", "max_abs_kl"}
    assert sweep["control"]["max_abs_kl"] == 0
    assert [layer["name"] for layer in sweep["layers"]] == r.names()
    layer = sweep["layers"][0]
    shown = {"name", "kind", "block", "format", "measured", "category", "share", "advice"}
    assert layer.keys() == shown
    assert sweep["floor"] == {"kl": 0.0, "dnll": 0.0}
    assert sweep.keys().isdisjoint({"estimated", "units", "agreement"})
    assert layer["measured"].keys() >= {
        "kl", "kl_se", "dnll", "dnll_se", "dppl", "dppl_ci95", "tokens",
    }  # fmt: skip
    low, high = layer["measured"]["dppl_ci95"]
    assert low < layer["measured"]["dppl"] < high
    assert sweep["additivity"]["kl"] == 0.97
    assert sweep["additivity"]["by_format"].keys() == {r.FORMAT}
    assert sweep["timings"].keys() == {
        "load_s", "forward_s", "quantize_s", "estimate_s", "measure_s",
    }  # fmt: skip


def test_evaluation_has_the_keys_of_its_schema(evaluation: dict[str, Any]) -> None:
    assert evaluation["schema"] == "qtui.eval/1"
    assert evaluation["protocol"].keys() >= PROTOCOL_KEYS
    assert evaluation["baseline"]["ppl"] == 26.17
    assert evaluation["recipe"].keys() >= {
        "nll", "ppl", "dnll_se", "kl", "kl_se", "top1_agreement", "bits_per_weight", "bytes",
    }  # fmt: skip
    assert evaluation["recipe"]["bits_per_weight"] == 4.25


def test_export_has_the_keys_of_its_schema() -> None:
    events = list(whole(p.Export(out="/out", format="int4-g128"), Session()))
    session = folded(p.Export(out="/out", format="int4-g128"))
    written = next(e for e in events if isinstance(e, p.Exported) and e.job == "5")
    found = as_json(export_document(session, written, (r.FORMAT,)))
    assert found.keys() == {
        "schema", "checkpoint", "recipe", "folder", "bytes", "bits_per_weight", "bits_all",
        "layers", "fallbacks", "notes", "versions", "timings", "to", "codes",
    }  # fmt: skip
    assert (found["to"], found["codes"]) == ("checkpoint", True)
    assert found["schema"] == "qtui.export/1"
    assert found["checkpoint"].keys() == {"name", "params", "bytes", "fingerprint"}
    assert found["recipe"] == dict.fromkeys(r.names()[1:3], "int4-g128")
    assert (found["folder"], found["bytes"], found["layers"]) == ("/out", 2_600_000, 2)
    assert found["bits_per_weight"] == 4.25
    assert found["notes"] == ["the head was \x1b[2Jtied"]
    assert found["fallbacks"] == [{"layer": r.names()[3], "format": r.FORMAT, "why": "rows of 100"}]
    assert found["timings"] == {"total_s": 1.5}


def test_what_is_not_finite_is_null(sweep: dict[str, Any]) -> None:
    assert sweep["additivity"]["dnll"] is None
    session = folded(p.Triage())
    found = session.layers.weights[0]
    assert found is not None
    exact = p.WeightError(0.0, 0.0, 0.0, 0.0, math.inf)
    session.layers.weights[0] = msgspec.structs.replace(
        found, kurtosis=math.nan, errors={"int8": exact}
    )
    layer = as_json(triage_document(session))["layers"][0]
    assert layer["kurtosis"] is None
    assert layer["errors"]["int8"]["sqnr_db"] is None
    assert "not finite" in tables.triage_text(triage_document(session))


def test_what_the_table_of_a_triage_lacks_comes_before_it() -> None:
    session = folded(p.Triage())
    assert "remarks" not in as_json(triage_document(session))
    lacking = "block 1 lacks mlp.up_proj, which other blocks have"
    apply(session, p.Notice("warning", lacking))
    apply(session, p.Notice("info", "stored in fp8"))
    document = triage_document(session)
    assert as_json(document)["remarks"] == [lacking]
    text = tables.triage_text(document)
    assert text.index(lacking) < text.index(r.names()[0])


def test_what_was_not_measured_has_no_key() -> None:
    session = folded()
    layer = as_json(triage_document(session))["layers"][0]
    assert layer.keys() == {"name", "kind", "block", "shape", "dtype", "category"}
    found = as_json(sweep_document(session, [r.FORMAT]))
    assert found["layers"] == []
    assert "control" not in found
    assert "additivity" not in found


def test_a_sweep_has_only_the_formats_asked_for() -> None:
    session = folded(p.Sweep())
    apply(session, p.Learned(("x",), (r.sensitivity("lm_head", 36, "int8"),)))
    both = sweep_document(session, ["int8", r.FORMAT])
    assert {layer.format for layer in both.layers} == {"int8", r.FORMAT}
    assert {layer.format for layer in sweep_document(session, ["int8"]).layers} == {"int8"}


def test_a_format_that_a_layer_cannot_hold_is_a_fallback() -> None:
    session = folded(p.Triage(), p.Sweep())
    apply(session, p.Fallback(layer="lm_head", format=r.FORMAT, why="a row of 100"))
    apply(session, p.Fallback(layer="lm_head", format="q4_k", why="not asked for here"))
    found = as_json(sweep_document(session, [r.FORMAT]))["fallbacks"]
    assert found == [{"layer": "lm_head", "format": r.FORMAT, "why": "a row of 100"}]
    weights = session.layers.weights[2]
    assert weights is not None
    session.layers.weights[2] = msgspec.structs.replace(weights, refused={"q4_k": "a row of 100"})
    document = triage_document(session)
    assert [(each.layer, each.format) for each in document.fallbacks] == [(r.names()[2], "q4_k")]
    assert "a row of 100" in tables.triage_text(document)


def test_the_worst_layers_come_first_in_a_table() -> None:
    document = sweep_document(folded(p.Sweep()), [r.FORMAT])
    lines = sweep_text(document).splitlines()
    heading = next(at for at, line in enumerate(lines) if line.startswith("layer "))
    assert lines[heading + 1].startswith("lm_head ")
    assert lines[heading + 2].startswith("model.layers.0.mlp.down_proj ")
    assert len({line.index("int4-g128") for line in lines[heading + 1 : heading + 38]}) == 1
    text = "\n".join(lines)
    assert "PPL 26.17" in text
    assert "16,384 tokens, window 256; float32 on cpu" in text
    assert "additivity of int4-g128: .97" in text


def test_names_that_could_steer_a_terminal_are_written_out() -> None:
    session = folded(p.Triage())
    session.layers.names[0] = "evil\x1b[2Jname"
    text = tables.triage_text(triage_document(session))
    assert "\x1b" not in text
    assert "evil\\x1b[2Jname" in text


def test_a_document_replaces_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text("old")
    document = sweep_document(folded(p.Sweep()), [r.FORMAT])
    json_output.write(document, path)
    assert path.read_text().startswith('{\n  "schema": "qtui.sweep/1",')
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["sweep.json"]


def test_a_document_goes_through_a_link_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    json_output.write(sweep_document(folded(p.Sweep()), [r.FORMAT]), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").is_file()


def test_layers_that_fall_back_alike_are_one_line() -> None:
    def fell(number: int, holds: str | msgspec.UnsetType = msgspec.UNSET) -> s.LayerFallback:
        return s.LayerFallback(layer=f"l{number}", format="int4-g128", why="why", holds=holds)

    lines = fallback_lines([*(fell(number, "iq4_xs") for number in range(7)), fell(8)])
    assert lines.splitlines() == [
        "fallback: l0, l1, l2, l3, l4 and 2 more hold iq4_xs, not int4-g128: why",
        "fallback: l8 is kept, not int4-g128: why",
    ]
    assert "l0, l1 are kept" in fallback_lines([fell(0), fell(1)])


def test_layers_that_differ_by_their_block_alone_are_told_in_one_line() -> None:
    def fell(block: int) -> s.LayerFallback:
        why = f"layers.{block}.v makes this input"
        return s.LayerFallback(layer=f"layers.{block}.o", format="int4-g128+awq", holds="", why=why)

    assert fallback_lines([fell(0)]).endswith("layers.0.v makes this input")
    (line,) = fallback_lines([fell(0), fell(12)]).splitlines()
    assert line.startswith("fallback: layers.0.o, layers.12.o are kept")
    assert line.endswith("layers.*.v makes this input")
