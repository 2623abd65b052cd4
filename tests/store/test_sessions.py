"""Past sessions: read beside their engines, and whatever state their files are in."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.opening.hub import hub_cache
from engine.session import recipe_hash
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.lock import SessionBusyError, is_running
from engine.store.past_sessions import PastSession, past_sessions, remove_session
from engine.store.paths import facts_file, session_folder, session_name, state_folder
from engine.store.seals import seal
from tests import tiny
from tests.drive import ended, settings, until

QUERY = "model.layers.0.self_attn.q_proj"


def listed(*names: str) -> p.LayersListed:
    n = len(names)
    return p.LayersListed(
        names=list(names), kinds=["q_proj"] * n, blocks=[0] * n, roles=["linear"] * n,
        shapes=[(64, 64)] * n, dtypes=["float16"] * n, other_bytes=10,
    )  # fmt: skip


def sensitivity(layer: str, format: str) -> p.Sensitivity:
    return p.Sensitivity(
        layer=layer, format=format, kl=0.1, kl_se=0.1, dnll=0.1, dnll_se=0.1, dppl=1, dppl_low=0,
        dppl_high=2, tokens=10,
    )  # fmt: skip


def score(recipe: str) -> p.RecipeScore:
    return p.RecipeScore(
        recipe=recipe, nll=2.5, ppl=12.5, ppl_low=12, ppl_high=13, dnll=0.2, dnll_se=0.1, kl=0.1,
        kl_se=0.1, top1=0.9, tokens=10, bits_per_weight=4.2, bytes=100,
    )  # fmt: skip


class Written:
    """A session written by hand, its engine still holding it."""

    def __init__(self, source: str) -> None:
        self.facts = FactStore(facts_file())
        self.journal = Journal(session_folder(session_name(source)), self.facts)
        self.journal.append(p.Opened(source, p.Settings(), {}))
        self.journal.append(
            p.CheckpointRead(
                name=f"name of {source}", path=source, architecture="LlamaForCausalLM",
                parameters=4096 * 3, bytes=4096 * 6, dtype="float16", fingerprint="f",
            )
        )  # fmt: skip
        self.journal.append(listed("a", "b", "c"))
        self.journal.commit()

    def learn(self, *facts: p.AnyFact) -> None:
        keys = tuple(f"{self.journal.folder.name}/{fact}" for fact in map(str, facts))
        self.facts.put(keys, facts)
        self.journal.append(p.Learned(keys, facts))
        self.journal.commit()

    def close(self) -> None:
        self.journal.close()
        self.facts.close()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    source = tmp_path / "checkpoint"
    source.mkdir()
    found = Written(str(source))
    yield found
    found.close()


def change(*layers: str) -> p.RecipeChanged:
    n = len(layers)
    return p.RecipeChanged(
        how="set", layers=list(layers), before=["fp16"] * n, after=["int4-g128"] * n,
        bits=[4096 * 4] * n,
    )  # fmt: skip


def only(name: str = "") -> PastSession:
    (found,) = [each for each in past_sessions() if not name or each.name == name]
    return found


def test_there_are_none_before_the_first() -> None:
    assert past_sessions() == []


def test_a_session_tells_what_was_found(written: Written) -> None:
    written.journal.append(change("a", "c"))
    written.learn(p.Baseline(2.3, 0.1, 10.0, 100))
    written.learn(sensitivity("a", "int4-g128"), sensitivity("b", "int4-g128"))
    written.learn(sensitivity("a", "int8"))
    written.learn(score(recipe_hash({"a": "int4-g128", "c": "int4-g128"})), score("another"))
    found = only()
    assert found.source == str(written.journal.folder.parents[3] / "checkpoint")
    assert found.checkpoint == f"name of {found.source}"
    assert (found.architecture, found.parameters) == ("LlamaForCausalLM", 4096 * 3)
    assert (found.layers, found.changed, found.measured) == (3, 2, 2)
    assert (found.ppl_reference, found.ppl_recipe) == (10.0, 12.5)
    assert found.bits_per_weight == pytest.approx((4 + 4 + 16) / 3)
    assert found.problem == ""
    assert found.running
    assert math.isfinite(found.when)


def test_the_snapshot_and_its_tail_are_one_story(written: Written) -> None:
    written.learn(p.Baseline(2.3, 0.1, 10.0, 100))
    written.journal.append(change("a"))
    written.journal.snapshot(written.journal.fold())
    written.journal.append(change("b"))
    written.learn(sensitivity("a", "int8"))
    found = only()
    assert (found.changed, found.measured, found.ppl_reference) == (2, 1, 10.0)


def test_its_engine_is_neither_waited_for_nor_disturbed(written: Written) -> None:
    db = sqlite3.connect(written.journal.path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")  # a writer in the midst of a transaction
    db.execute("INSERT INTO events VALUES (99, 0, 'x', 1, x'00')")
    assert (only().layers, only().problem) == (3, "")
    db.execute("ROLLBACK")
    db.close()
    assert written.journal.append(change("b")) == 4
    assert only().changed == 1


def test_a_session_without_its_engine_is_not_running(written: Written) -> None:
    folder = written.journal.folder
    assert is_running(folder)
    written.journal.close()
    assert not is_running(folder)  # the number in its lock is alive: this process
    (folder / "lock").write_text("999999999")
    assert not is_running(folder)
    for nonsense in ("", "nonsense", "-1"):
        (folder / "lock").write_text(nonsense)
        assert not is_running(folder)
    found = only()
    assert not found.running
    assert found.layers == 3
    Journal(folder, written.facts, patience=0).close()  # nothing holds it afterwards


def test_a_lock_that_another_holds_is_seen(written: Written) -> None:
    folder = written.journal.folder
    written.journal.close()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        assert is_running(folder)


def test_those_that_do_not_run_can_be_left_out(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.journal.folder
    Written(str(tmp_path)).close()
    assert len(past_sessions()) == 2
    monkeypatch.setattr("engine.store.past_sessions.is_running", lambda each: each == folder)
    (running,) = past_sessions(only_running=True)
    assert (running.name, running.running) == (folder.name, True)


def test_the_last_used_come_first_and_no_more_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        with monkeypatch.context() as patched:
            patched.setattr("engine.store.journal.time.time", lambda at=number: 1000.0 + at % 3)
            written = Written(str(tmp_path / str(number)))
        written.close()
        os.utime(written.journal.path, (1000 + number % 3,) * 2)
    found = past_sessions()
    assert [Path(each.source).name for each in found] == ["2", "1", "0", "3"]
    assert [each.when for each in found] == [1002.0, 1001.0, 1000.0, 1000.0]
    assert [each.source for each in past_sessions(2)] == [each.source for each in found[:2]]
    assert past_sessions(0) == []


def test_what_cannot_be_read_is_told_beside_the_others(written: Written, tmp_path: Path) -> None:
    sessions = state_folder() / "sessions"
    (sessions / "rubbish").mkdir()
    (sessions / "rubbish" / "journal.sqlite").write_bytes(b"no database, for certain" * 100)
    (sessions / "empty").mkdir()
    (sessions / "empty" / "journal.sqlite").write_bytes(b"")  # an engine that was killed at once
    (sessions / "without").mkdir()
    (sessions / "file").write_text("")
    undone = p.encode(p.RecipeChanged(how="undo", layers=["a"], before=[], after=[], bits=[]))
    for name, statement, values in (
        ("newer", "INSERT INTO events VALUES (9, 9, 'Notice', 99, ?)",
         (seal(b"from the future", 9, 9.0, "Notice", 99),)),
        ("strange", "UPDATE events SET bytes = x'C1'", ()),
        ("torn", "INSERT INTO events VALUES (4, 9, 'RecipeChanged', 1, ?)", (undone,)),
    ):  # fmt: skip
        shutil.copytree(written.journal.folder, sessions / name)
        db = sqlite3.connect(sessions / name / "journal.sqlite")
        db.execute(statement, values)
        db.commit()
        db.close()
    found = {each.name: each for each in past_sessions()}
    assert set(found) == {
        written.journal.folder.name, "rubbish", "newer", "strange", "torn"
    }  # fmt: skip
    for name in ("rubbish", "newer", "strange", "torn"):
        assert str(sessions / name / "journal.sqlite") in found[name].problem, name
        assert "\n" not in found[name].problem
        assert found[name].when > 0
    assert "newer qtui" in found["newer"].problem
    assert found[written.journal.folder.name].problem == ""


def test_without_the_store_of_facts_the_rest_is_told(written: Written) -> None:
    written.learn(p.Baseline(2.3, 0.1, 10.0, 100))
    written.close()
    facts_file().unlink()
    found = only()
    assert found.layers == 3
    assert math.isnan(found.ppl_reference)
    assert not facts_file().exists()


def test_a_checkpoint_that_is_gone_is_said(written: Written) -> None:
    Path(only().source).rmdir()
    assert "no longer exists" in only().problem
    assert only().layers == 3


def test_a_path_that_was_no_checkpoint_is_not_listed(tmp_path: Path) -> None:
    facts = FactStore(facts_file())
    journal = Journal(session_folder("nothing-there"), facts)
    journal.append(p.Opened(str(tmp_path), p.Settings(), {}))
    journal.commit()
    journal.close()
    facts.close()
    assert past_sessions() == []


def test_a_removed_session_is_gone_and_its_results_stay(written: Written) -> None:
    written.close()
    name = only().name
    before = facts_file().read_bytes()
    remove_session(name)
    assert past_sessions() == []
    assert not (state_folder() / "sessions" / name).exists()
    assert facts_file().read_bytes() == before
    remove_session(name)
    for other in ("..", ".", "", "../..", "a/b"):
        remove_session(other)
    assert facts_file().read_bytes() == before


def test_a_session_that_runs_is_not_removed(written: Written) -> None:
    with pytest.raises(SessionBusyError):
        remove_session(written.journal.folder.name)
    assert only().layers == 3


def test_a_session_in_which_nothing_was_opened_is_none() -> None:
    facts = FactStore(facts_file())
    Journal(session_folder("nothing"), facts).close()
    facts.close()
    assert past_sessions() == []


def test_a_real_run_is_found_again_while_it_runs_and_afterwards(
    tmp_path: Path, prose: Path
) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    client: InProcess = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        until(client, ended("open"))
        client.send(p.SetFormat((QUERY,), "int4-g32"))
        until(client, ended("evaluate"))
        told = client.session
        during = only()
    finally:
        client.close()
    after = only()
    assert during.running
    assert not after.running
    measured = told.score()
    assert told.baseline is not None
    assert measured is not None
    for found in (during, after):
        assert (found.layers, found.changed) == (len(told.layers.names), 1)
        assert (found.ppl_reference, found.ppl_recipe) == (told.baseline.ppl, measured.ppl)
        assert found.bits_per_weight == told.bits_per_weight()


def test_the_hubs_cache_is_found_where_its_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    assert hub_cache() == []

    def fill(folder: Path, *names: str) -> None:
        for name in names:
            (folder / name / "snapshots" / "abc").mkdir(parents=True)

    fill(tmp_path / "cache" / "huggingface" / "hub", "models--org--Zeta-7B", "models--gpt2")
    fill(tmp_path / "cache" / "huggingface" / "hub", "datasets--org--text")
    (tmp_path / "cache" / "huggingface" / "hub" / "models--org--bare").mkdir()
    (tmp_path / "cache" / "huggingface" / "hub" / ".locks").mkdir()
    assert hub_cache() == ["gpt2", "org/Zeta-7B"]
    fill(tmp_path / "home" / "hub", "models--a--b")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache() == ["a/b"]
    fill(tmp_path / "own", "models--c--d")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "own"))
    assert hub_cache() == ["c/d"]
