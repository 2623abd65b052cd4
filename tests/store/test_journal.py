"""The journal and the store of facts: nothing committed is lost, nothing is told twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import protocol as p
from engine.session import Session, apply, decode_session, encode_session
from engine.store.database import StoreError
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.lock import SessionBusyError
from engine.store.seals import seal

LISTED = p.LayersListed(
    names=["a", "b"],
    kinds=["q_proj", "lm_head"],
    blocks=[0, -1],
    roles=["linear", "head"],
    shapes=[(4, 8), (16, 8)],
    dtypes=["float16", "float16"],
    other_bytes=10,
)


def score(recipe: str, nll: float) -> p.RecipeScore:
    return p.RecipeScore(
        recipe=recipe, nll=nll, ppl=1.0, ppl_low=1.0, ppl_high=1.0, dnll=0.0, dnll_se=0.0,
        kl=0.0, kl_se=0.0, top1=1.0, tokens=8, bits_per_weight=4.25, bytes=100,
    )  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> FactStore:
    return FactStore(tmp_path / "facts.sqlite")


def test_facts_are_journalled_by_key_and_filled_in_on_reading(
    tmp_path: Path, facts: FactStore
) -> None:
    journal = Journal(tmp_path, facts)
    found = p.Learned(("k1", "k2"), (score("x", 1.0), score("y", 2.0)))
    facts.put(found.keys, found.facts)
    assert journal.append(LISTED) == 1
    assert journal.append(found) == 2
    assert [event for _, event in journal.read()] == [LISTED, found]
    journal.close()


def test_a_fact_is_never_changed_unless_it_is_measured_anew(facts: FactStore) -> None:
    facts.put(["k"], [score("x", 1.0)])
    facts.put(["k"], [score("x", 2.0)])
    assert facts.get("k") == score("x", 1.0)
    facts.put(["k"], [score("x", 3.0)], replace=True)
    assert facts.get("k") == score("x", 3.0)
    assert facts.get_many(["k"], since=1e12) == {}


def test_folding_a_journal_gives_the_session_that_wrote_it(
    tmp_path: Path, facts: FactStore
) -> None:
    journal = Journal(tmp_path, facts)
    events: list[p.AnyEvent] = [
        p.Opened("demo", p.Settings(), {"torch": "2"}),
        LISTED,
        p.RecipeChanged(how="set", layers=["a"], before=["fp16"], after=["int8"], bits=[300]),
        p.RecipeChanged(how="undo", layers=["a"], before=["int8"], after=["fp16"], bits=[512]),
        p.Learned(("k",), (score("x", 1.0),)),
        p.Notice("info", "hello"),
    ]
    facts.put(["k"], [score("x", 1.0)])
    session = Session()
    for event in events:
        apply(session, event, journal.append(event))
    assert journal.fold() == session
    journal.snapshot(session)
    more = p.RecipeChanged(how="redo", layers=["a"], before=["fp16"], after=["int8"], bits=[300])
    apply(session, more, journal.append(more))
    assert journal.fold() == session
    assert session.recipe() == {"a": "int8"}
    assert decode_session(encode_session(session)) == session
    journal.close()


def test_a_fresh_opening_forgets_the_history_but_no_number(
    tmp_path: Path, facts: FactStore
) -> None:
    journal = Journal(tmp_path, facts)
    for event in (LISTED, p.Notice("info", "old")):
        journal.append(event)
    journal.clear()
    opened = p.Opened("demo", p.Settings(fresh=True), {})
    assert journal.append(opened) == 3
    session = journal.fold()
    assert session.layers.names == []
    assert session.seq == 3
    journal.close()


NOTICE = p.Notice("info", "hello")
CHANGE = p.RecipeChanged(how="set", layers=["a"], before=["fp16"], after=["int8"], bits=[300])
ENDED = p.JobEnded(job="1", kind="sweep", status="done")


def committed(journal: Journal) -> list[str]:
    """Kinds of the events that another process finds in the file."""
    db = sqlite3.connect(journal.path)
    try:
        return [kind for (kind,) in db.execute("SELECT kind FROM events ORDER BY seq")]
    finally:
        db.close()


def test_events_are_written_in_groups_and_in_order(
    tmp_path: Path, facts: FactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.journal.GROUP_SECONDS", 3600.0)
    journal = Journal(tmp_path, facts)
    journal.append(LISTED)
    assert journal.append(NOTICE) == 2
    assert committed(journal) == []
    journal.append(CHANGE)
    assert committed(journal) == ["LayersListed", "Notice", "RecipeChanged"], "an intent: at once"
    journal.append(NOTICE)
    journal.append(ENDED)
    assert committed(journal)[3:] == ["Notice", "JobEnded"], "the end of a job: at once"
    journal.append(NOTICE)
    assert [seq for seq, _ in journal.read()] == [1, 2, 3, 4, 5, 6], "its own reader misses none"
    monkeypatch.setattr("engine.store.journal.GROUP_EVENTS", 3)
    for _ in range(4):
        journal.append(NOTICE)
    assert len(committed(journal)) == 9, "so many are a group"
    journal.close()
    assert len(committed(journal)) == 10, "closing writes the rest"


def test_the_last_events_are_written_although_nothing_follows(
    tmp_path: Path, facts: FactStore
) -> None:
    journal = Journal(tmp_path, facts)
    journal.append(NOTICE)
    deadline = time.monotonic() + 30
    while committed(journal) != ["Notice"]:
        assert time.monotonic() < deadline
    journal.close()


def test_events_that_could_not_be_written_are_written_later(
    tmp_path: Path, facts: FactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.journal.GROUP_SECONDS", 3600.0)
    journal = Journal(tmp_path, facts)
    journal.append(NOTICE)
    journal._db.execute("PRAGMA query_only = 1")  # as on a disk that is full
    for _ in range(2):
        with pytest.raises(StoreError, match=r"journal\.sqlite"):
            journal.append(CHANGE)
    journal._db.execute("PRAGMA query_only = 0")
    assert journal.append(CHANGE) == 2
    assert committed(journal) == ["Notice", "RecipeChanged"]
    journal.close()


def test_one_engine_holds_a_session(tmp_path: Path, facts: FactStore) -> None:
    journal = Journal(tmp_path, facts)
    with pytest.raises(SessionBusyError, match=str(os.getpid())):
        Journal(tmp_path, facts, patience=0.0)
    journal.close()
    Journal(tmp_path, facts).close()


def test_what_is_no_journal_is_named_kept_and_replaced(tmp_path: Path, facts: FactStore) -> None:
    content = b"not a database at all" * 100
    (tmp_path / "journal.sqlite").write_bytes(content)
    journal = Journal(tmp_path, facts)
    assert "journal.sqlite" in journal.recovered
    assert "nothing of it is left" in journal.recovered
    assert journal.append(NOTICE) == 1
    journal.close()
    assert (tmp_path / "journal.sqlite.damaged").read_bytes() == content


def test_a_newer_version_is_refused(tmp_path: Path, facts: FactStore) -> None:
    data = seal(p.encode(score("x", 1.0)), "k", 1.5, 99)
    facts._file.connection.execute("INSERT INTO facts VALUES ('k', 1.5, 99, ?)", (data,))
    with pytest.raises(StoreError, match="newer qtui"):
        facts.get("k")


def test_committed_facts_survive_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from engine.store.facts import FactStore\n"
        "from engine import protocol as p\n"
        "store = FactStore(Path(sys.argv[1]))\n"
        "for i in range(50):\n"
        "    store.put([str(i)], [p.Control('x', float(i), 0.0)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "killed.sqlite"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(FactStore(path).get_many([str(i) for i in range(50)])) == 50
