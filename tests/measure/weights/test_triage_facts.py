"""What a triage keeps: one fact for a layer's statistics, and one for its error in each format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.measure.weights import plain, triage
from engine.measure.weights.fused import Pass
from engine.measure.weights.passes import Passes
from engine.measure.weights.sums import Sums
from engine.service.jobs import Outcome
from engine.session import Session, apply
from engine.store import keys
from engine.store.facts import FactStore
from engine.workspace import Opened
from tests import tiny
from tests.drive import open_files, settings

A, B, C = "int4-g32", "int8", "nf4-g64"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    store = FactStore(tmp_path / "facts.sqlite")
    yield open_files(tiny.build("llama", tmp_path / "model"), store, settings())
    store.close()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each format's error is computed; ``statistics`` for those."""
    counts: Counter[str] = Counter()
    error, weights = plain.plain_error, Sums.weights
    begin = Passes.begin

    def counting(weight: object, format: object, *rest: object) -> object:
        counts[str(format)] += 1
        return error(weight, format, *rest)  # type: ignore[arg-type]

    def beginning(self: Passes, work: Pass, sigma: float) -> object:
        counts.update(map(str, work.formats))
        return begin(self, work, sigma)

    def summed(*given: object) -> object:
        counts["statistics"] += 1
        return weights(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(plain, "plain_error", counting)
    monkeypatch.setattr(Passes, "begin", beginning)
    monkeypatch.setattr(Sums, "weights", summed)
    return counts


def run(opened: Opened, formats: Sequence[str]) -> tuple[list[p.Learned], Outcome]:
    """A triage, its facts kept as the engine keeps them."""
    steps, learned = triage.triage(opened, formats, "triage-1"), []
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return learned, end.value
        if isinstance(event, p.Learned):
            learned.append(event)
            if event.fresh:
                opened.workspace.facts.put(event.keys, event.facts)


def folded(opened: Opened, *runs: list[p.Learned]) -> list[p.LayerWeights | None]:
    """The rows of a session that heard all of this."""
    rows = list(opened.rows.values())
    session = Session()
    apply(
        session,
        p.LayersListed(
            names=[row.name for row in rows], kinds=[row.kind for row in rows],
            blocks=[row.block or 0 for row in rows], roles=[row.role for row in rows],
            shapes=[row.shape for row in rows], dtypes=[row.dtype for row in rows],
            other_bytes=0, groups=[-1] * len(rows),
        ),
    )  # fmt: skip
    for event in (event for learned in runs for event in learned):
        apply(session, event)
    return session.layers.weights


def test_another_list_of_formats_measures_only_what_is_new(
    opened: Opened, computed: Counter[str]
) -> None:
    layers = len(opened.rows)
    first, outcome = run(opened, [A, B])
    assert computed == {"statistics": layers, A: layers, B: layers}
    assert (outcome.measured, outcome.resumed) == (layers, 0)
    computed.clear()
    second, outcome = run(opened, [B, C])
    assert computed == {C: layers}
    assert (outcome.measured, outcome.resumed) == (layers, 0)
    computed.clear()
    third, outcome = run(opened, [C, A, B])
    assert not computed
    assert (outcome.measured, outcome.resumed) == (0, layers)

    for known in folded(opened, first, second):
        assert known is not None
        assert list(known.errors) == [A, B, C]
    # Another session hears of each layer in the order that it asked for.
    for known in folded(opened, third):
        assert known is not None
        assert list(known.errors) == [C, A, B]


def test_statistics_with_another_sigma_do_not_measure_errors_again(
    opened: Opened, computed: Counter[str]
) -> None:
    run(opened, [A])
    computed.clear()
    opened.workspace.settings = msgspec.structs.replace(opened.settings, sigma=5.0)
    run(opened, [A])
    assert computed == {"statistics": len(opened.rows)}


def test_facts_of_a_list_as_the_version_before_kept_them_are_taken_over(
    opened: Opened, computed: Counter[str], tmp_path: Path
) -> None:
    learned, _ = run(opened, [A, B])
    expected = folded(opened, learned)
    store = FactStore(tmp_path / "before.sqlite")
    for fact in expected:
        assert fact is not None
        key = keys.ListedWeights(
            on=opened.files, layer=fact.layer, formats=(A, B), sigma=opened.settings.sigma,
            scale_dtype=opened.scale_dtype,
        )  # fmt: skip
        store.put([key.address], [fact])
    opened.workspace.facts = store
    computed.clear()
    taken_over, outcome = run(opened, [A, B])
    # Their statistics lack what this version knows of a layer; their errors are what they were.
    assert computed == {"statistics": len(opened.rows)}
    assert (outcome.measured, outcome.resumed) == (len(opened.rows), 0)
    assert folded(opened, taken_over) == expected
    computed.clear()
    run(opened, [B, A])
    assert not computed
    store.close()


def test_a_format_that_a_layer_cannot_hold_is_a_fact_with_the_reason(
    opened: Opened, computed: Counter[str]
) -> None:
    learned, _ = run(opened, ["q4_k"])
    refused = [known for known in folded(opened, learned) if known is not None and known.refused]
    assert refused
    assert all("q4_k" in known.refused and not known.errors for known in refused)
    assert run(opened, ["q4_k"])[1].resumed == len(opened.rows)


def test_many_small_layers_share_an_event(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triage, "ANNOUNCE_SECONDS", float("inf"))
    learned, _ = run(opened, [A, B])
    assert [len(event.facts) for event in learned] == [3 * len(opened.rows), 1]
    assert len(learned[0].keys) == 3 * len(opened.rows)
