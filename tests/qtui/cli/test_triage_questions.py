"""Questions about one layer beside a triage: asked in time, answered in the document."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable

import msgspec
import pytest

from engine import protocol as p
from engine.errors import UsageError
from engine.report import json as json_output
from engine.report import schema
from engine.report.documents import triage_document
from engine.session import Session
from qtui.cli.headless import RunError, measure
from qtui.cli.progress import Meter
from tests.qtui import replay as r
from tests.qtui.scripted import Answer, install, whole

LAYER = "model.layers.0.mlp.down_proj"


def answering(*events: p.AnyEvent) -> Answer:
    """As everything goes well, and these to a question."""

    def answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
        if isinstance(command, p.AskHistogram | p.AskExperts):
            return events
        return whole(command, session)

    return answer


def triage(*questions: p.AskHistogram | p.AskExperts) -> dict[str, object]:
    outcome = measure("demo", r.SETTINGS, p.Triage(), Meter(io.StringIO()), questions)
    document = triage_document(outcome.session, outcome.job, outcome.answers)
    found = json.loads(json_output.encode(document), parse_constant=pytest.fail)
    assert msgspec.json.decode(json_output.encode(document), type=schema.TriageDocument) == document
    assert isinstance(found, dict)
    return found


def test_a_histogram_stands_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = r.histogram(LAYER)
    engine = install(monkeypatch, answering(ready))
    found = triage(p.AskHistogram(LAYER))
    assert found["histogram"] == {
        "layer": LAYER, "low": -0.31, "high": 0.31, "counts": ready.counts, "mean": 0.0,
        "std": 0.0412,
    }  # fmt: skip
    assert "experts" not in found
    assert [type(command) for command in engine.sent] == [p.Open, p.Triage, p.AskHistogram]


def test_a_grid_stands_beside_it_where_a_format_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = msgspec.structs.replace(
        r.histogram(LAYER), format="int4-g128", grid=[-0.1, 0.1], step=math.nan, std=math.inf
    )
    # An answer to somebody else's question comes first, on the same engine.
    theirs = [r.histogram("lm_head"), r.histogram(LAYER), r.histogram(LAYER, bins=7)]
    install(monkeypatch, answering(*theirs, ready))
    found = triage(p.AskHistogram(LAYER, format="int4-g128-asym"))
    part = found["histogram"]
    assert isinstance(part, dict)
    assert part["format"] == "int4-g128"
    assert part["grid"] == [-0.1, 0.1]
    assert part["step"] is None
    assert part["std"] is None


def test_experts_stand_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = p.ExpertsReady(
        layer=LAYER, std=[0.1, math.nan], max_abs=[1.0, 2.0], outliers=[0.0, 0.5],
        nonfinite=[0, 4], relative={"int8": [0.01, 0.02]},
    )  # fmt: skip
    install(monkeypatch, answering(ready))
    found = triage(p.AskExperts(LAYER))
    assert found["experts"] == {
        "layer": LAYER, "std": [0.1, None], "max_abs": [1.0, 2.0], "outliers": [0.0, 0.5],
        "nonfinite": [0, 4], "relative": {"int8": [0.01, 0.02]},
    }  # fmt: skip


def test_a_triage_without_questions_has_no_such_key(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert not {"histogram", "experts"} & set(triage())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("model.layers.0.mlp.down_prj", f"did you mean {LAYER}"),
        ("down_proj", "did you mean model.layers.0.mlp.down_proj or model.layers.1.mlp.down_proj"),
        ("zzz", "layer names look like lm_head"),
    ],
)
def test_a_layer_there_is_not_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    engine = install(monkeypatch)
    with pytest.raises(UsageError) as fault:
        triage(p.AskHistogram(given))
    assert f"demo has no layer {given!r}: " in str(fault.value)
    assert said in str(fault.value)
    assert [type(command) for command in engine.sent] == [p.Open]
    assert engine.closed


def test_a_question_that_is_refused_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = p.Refused("AskHistogram", "not yours", layers=("lm_head",))
    install(
        monkeypatch,
        answering(theirs, p.Refused("AskHistogram", "cannot be read", 3, layers=(LAYER,))),
    )
    with pytest.raises(RunError, match="cannot be read") as fault:
        triage(p.AskHistogram(LAYER))
    assert fault.value.exit_code == 3


def test_the_engine_answers() -> None:
    outcome = measure(
        "demo", p.Settings(formats=("int8",)), p.Triage(), Meter(io.StringIO()),
        [p.AskHistogram(LAYER, bins=32)],
    )  # fmt: skip
    (ready,) = outcome.answers
    assert isinstance(ready, p.HistogramReady)
    row = outcome.session.index[LAYER]
    assert sum(ready.counts) == math.prod(outcome.session.layers.shapes[row])
    assert len(ready.counts) == 32
