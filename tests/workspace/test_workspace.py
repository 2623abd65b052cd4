"""Several checkpoints in one workspace, and what is kept with a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from engine import protocol as p
from engine.errors import EngineError, UsageError
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import baseline
from engine.measure.evaluation.reference import Reference, reference_of
from engine.opening.stages import open_job
from engine.service.jobs import Steps
from engine.service.retrying import Failure, Retried
from engine.store.facts import FactStore
from engine.workspace import Loaded, Opened, Workspace
from tests import tiny
from tests.drive import settings


@pytest.fixture
def workspace(tmp_path: Path, prose: Path) -> Iterator[Workspace]:
    store = FactStore(tmp_path / "facts.sqlite")
    yield Workspace(store, settings(prose))
    store.close()


def add(workspace: Workspace, folder: Path, *, model: bool = True, **sizes: object) -> None:
    tiny.build("llama", folder, **sizes)
    for _ in open_job(workspace, str(folder), model=model):
        pass


def test_two_models_are_open_at_once_and_measured_each_on_its_own(
    workspace: Workspace, tmp_path: Path
) -> None:
    add(workspace, tmp_path / "a")
    add(workspace, tmp_path / "b", num_hidden_layers=1)
    first, second = workspace.every(Loaded)
    assert workspace.need(Loaded) is second
    assert [loaded.opened for loaded in (first, second)] == workspace.every(Opened)
    assert first.evaluation != second.evaluation
    learned = [
        event
        for loaded in (first, second)
        for event in baseline(loaded, JobCounts())
        if isinstance(event, p.Learned)
    ]
    assert len({event.keys for event in learned}) == 2
    assert len({event.facts for event in learned}) == 2
    workspace.assert_at_rest()


def test_files_alone_are_no_model(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no checkpoint is open"):
        workspace.need(Opened)
    add(workspace, tmp_path / "a", model=False)
    opened = workspace.need(Opened)
    assert opened.row(next(iter(opened.rows))).name in opened.rows
    with pytest.raises(UsageError, match="no layer 'elsewhere'"):
        opened.row("elsewhere")
    with pytest.raises(EngineError, match="no model is loaded"):
        workspace.need(Loaded)


def test_a_part_is_made_when_it_is_first_asked_for_and_stays(
    workspace: Workspace, tmp_path: Path
) -> None:
    add(workspace, tmp_path / "a")
    loaded = workspace.need(Loaded)
    assert loaded.find(Reference) is None
    reference = reference_of(loaded)
    assert reference_of(loaded) is reference
    assert loaded.find(Reference) is reference
    assert reference.windows is loaded.windows


def test_what_a_step_leaves_open_is_noticed(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, tmp_path / "a")
    network = workspace.need(Loaded).network
    name = next(iter(network.layers))
    with network.holding({name: network.weight(name) * 2}), pytest.raises(AssertionError):
        workspace.assert_at_rest()
    workspace.assert_at_rest()


class Cached:
    """Something open that can give its caches, as often as it has made them anew."""

    absent: ClassVar[str] = "nothing is open"
    exhausted = False

    def assert_at_rest(self) -> None: ...

    def give_way(self) -> str:
        return "caches are dropped"

    def take_back(self) -> None: ...

    def memory(self) -> str:
        return "cpu"


def test_each_job_may_be_given_memory_once_for_a_need_that_was_known(workspace: Workspace) -> None:
    """Also one that comes after another to which something was given, and which ended well."""
    workspace.add(Cached())
    for _ in range(2):
        said = workspace.relieve("no room", known_before=True, again=False)
        assert said is not None
        assert "caches are dropped" in said
        assert workspace.relieve("no room", known_before=True, again=True) is None


def test_what_a_job_was_given_is_its_own() -> None:
    asked: list[bool] = []

    def fails() -> Steps:
        yield None
        raise MemoryError

    def relieve(failure: Failure) -> p.AnyEvent:
        asked.append(failure.again)
        return p.Notice("warning", "given")

    for _ in range(2):
        job = Retried(fails, relieve)
        events = [next(job) for _ in range(4)]
        assert events == [None, p.Notice("warning", "given")] * 2
    assert asked == [False, True] * 2
