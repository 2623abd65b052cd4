"""A journal and a store of facts that the version before wrote: nothing of them is lost.

They are of the bundled checkpoint, with 1024 tokens in windows of 128: a triage in three formats, a
sweep of two with ``top:3``, one by block, one that restores, an evaluation, two changes of the
recipe and one undone. ``expected.json`` holds the documents that the version before made of them.
"""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import protocol as p
from engine.client import in_process
from engine.report.documents import eval_document, sweep_document, triage_document
from engine.session import Job, Session
from engine.store.database import StoreError
from engine.store.facts import FactStore
from engine.store.journal import Journal, peek
from engine.store.past_sessions import past_sessions
from engine.store.paths import facts_file, session_folder
from engine.store.seals import seal
from engine.store.upcasters import VERSION
from tests.drive import ended, until

WRITTEN = Path(__file__).parent / "version_1"


def unpacked(name: str) -> bytes:
    return gzip.decompress((WRITTEN / f"{name}.gz").read_bytes())


EXPECTED: dict[str, Any] = msgspec.json.decode(unpacked("expected.json"))


@pytest.fixture
def journal_file() -> Path:
    """Where the old journal lies; the old facts are in the store."""
    facts_file().write_bytes(unpacked("facts.sqlite"))
    path = session_folder("demo") / "journal.sqlite"
    path.write_bytes(unpacked("journal.sqlite"))
    return path


@pytest.fixture
def facts(journal_file: Path) -> Iterator[FactStore]:
    store = FactStore(facts_file())
    yield store
    store.close()


def rows(path: Path, sql: str) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def execute(path: Path, sql: str, *values: object) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(sql, values)
    db.close()


def says_the_same(found: msgspec.Struct, written: bytes, without: tuple[str, ...] = ()) -> bool:
    """Whether every field that was written is in what was read; NaN equals NaN."""
    old = {k: v for k, v in msgspec.msgpack.decode(written).items() if k not in without}
    new = msgspec.msgpack.decode(p.encode(found))
    return msgspec.json.encode(old) == msgspec.json.encode(among(new, old))


def among(new: Any, old: Any) -> Any:
    """``new`` without the fields that ``old`` does not have, such as settings added since."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: among(new[key], value) for key, value in old.items()}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [among(*pair) for pair in zip(new, old, strict=True)]
    return new


def events(folder: Path, facts: FactStore) -> dict[int, bytes]:
    """Every event of a journal, encoded: NaN equals NaN."""
    journal = Journal(folder, facts)
    try:
        return {seq: p.encode(event) for seq, event in journal.read()}
    finally:
        journal.close()


def notices() -> list[str]:
    """What an engine of the demo says when it is made."""
    client = in_process("demo")
    while client.receive(0.0) is not None:
        pass
    client.close()
    return [notice.message for notice in client.session.notices]


def test_every_fact_is_there_with_all_its_figures(facts: FactStore) -> None:
    written = rows(facts_file(), "SELECT key, data FROM facts WHERE version = 1")
    found = facts.get_many([key for key, _ in written])
    assert len(written) == 415
    kinds = {type(fact).__name__ for fact in found.values()}
    assert kinds == {
        "LayerWeights", "Baseline", "Control", "Sensitivity", "Estimate", "RecipeScore",
        "Additivity",
    }  # fmt: skip
    assert all(says_the_same(found[key], data) for key, data in written)


def test_every_event_is_there_in_order(journal_file: Path, facts: FactStore) -> None:
    written = rows(journal_file, "SELECT seq, kind, bytes FROM events ORDER BY seq")
    journal = Journal(journal_file.parent, facts)
    found = list(journal.read())
    journal.close()
    assert [seq for seq, _ in found] == [seq for seq, _, _ in written]
    for (_, event), (_, kind, data) in zip(found, written, strict=True):
        assert type(event).__name__ == kind
        # The facts of what was learned are in the store; a job's command was not written.
        without = ("facts",) if kind == "Learned" else ("formats", "ask")
        assert says_the_same(event, data, without)
        if isinstance(event, p.Learned):
            assert len(event.facts) == len(event.keys)


def documents(session: Session) -> dict[str, bytes]:
    """What the commands would write of a session, as `EXPECTED` has it."""
    jobs: dict[str, list[Job]] = {}
    for job in session.jobs.values():
        jobs.setdefault(job.kind, []).append(job)
    both, blocks, restored = jobs["sweep"]
    score = session.score()
    assert score is not None
    made = {
        "triage": triage_document(session),
        "sweep": sweep_document(session, ("int4-g128", "int3-g128"), "degrade", both),
        "by block": sweep_document(session, ("int4-g128",), "degrade", blocks, "block"),
        "restore": sweep_document(session, ("int3-g128",), "restore", restored),
        "evaluate": eval_document(session, score, "recipe", job=jobs["evaluate"][-1]),
    }
    return {name: msgspec.json.encode(document) for name, document in made.items()}


def assert_as_it_was(session: Session) -> None:
    found = {name: msgspec.json.decode(each) for name, each in documents(session).items()}
    # Keys may have been added since.
    assert among(found, EXPECTED["documents"]) == EXPECTED["documents"]
    assert session.layers.holds == EXPECTED["holds"]
    assert session.position == EXPECTED["position"]
    history = [[each.layers, each.before, each.after] for each in session.history]
    assert history == EXPECTED["history"]


def test_figures_are_what_they_were(journal_file: Path, facts: FactStore) -> None:
    assert_as_it_was(peek(journal_file.parent, facts)[0])
    journal = Journal(journal_file.parent, facts)
    assert_as_it_was(journal.fold())
    journal.close()


def test_a_snapshot_of_the_version_before_is_left_alone(
    journal_file: Path, facts: FactStore
) -> None:
    old = msgspec.msgpack.encode({"source": "demo", "measured": {"degrade/int8": []}, "seq": 300})
    execute(journal_file, "INSERT INTO snapshots VALUES (300, 1, ?)", old)
    journal = Journal(journal_file.parent, facts)
    session = journal.fold()
    assert_as_it_was(session)
    journal.snapshot(session)
    assert_as_it_was(journal.fold())
    journal.close()
    assert rows(journal_file, "SELECT version FROM snapshots") == [(VERSION,)]


def test_an_old_history_goes_on(journal_file: Path, facts: FactStore) -> None:
    journal = Journal(journal_file.parent, facts)
    before = journal.fold()
    assert journal.append(p.Notice("info", "goes on")) == before.seq + 1
    journal.close()
    session, _ = peek(journal_file.parent, facts)
    assert session.seq == before.seq + 1
    assert_as_it_was(session)


def test_what_was_measured_is_not_measured_again(journal_file: Path) -> None:
    client = in_process("demo")
    try:
        assert len(client.session.recipe()) == 2
        settings = client.session.settings
        client.send(p.Open("demo", settings, model=False))
        client.send(p.Triage())
        last = until(client, ended("triage"))[-1]
    finally:
        client.close()
    assert isinstance(last, p.JobEnded)
    # Statistics of weights say more than they did; errors in formats are what they were.
    assert (last.status, last.measured, last.resumed) == ("done", 37, 0)


def test_a_past_session_is_listed(journal_file: Path) -> None:
    (past,) = past_sessions()
    assert past.problem == ""
    assert (past.source, past.layers, past.changed, past.measured) == ("demo", 37, 2, 37)


def test_a_newer_version_is_refused_in_a_sentence(journal_file: Path, facts: FactStore) -> None:
    columns = 9999, 0.0, "Notice", VERSION + 1
    newer = seal(p.encode(p.Notice("info", "from the future")), *columns)
    execute(journal_file, "INSERT INTO events VALUES (9999, 0, 'Notice', ?, ?)", VERSION + 1, newer)
    journal = Journal(journal_file.parent, facts)
    with pytest.raises(StoreError, match=r"journal\.sqlite was written by a newer qtui"):
        journal.fold()
    journal.close()
    (past,) = past_sessions()
    assert "was written by a newer qtui" in past.problem
    with pytest.raises(StoreError, match=r"newer qtui \(version \d+\): update qtui"):
        in_process("demo")


def test_a_snapshot_of_a_newer_version_is_not_read(journal_file: Path, facts: FactStore) -> None:
    execute(
        journal_file, "INSERT INTO snapshots VALUES (300, ?, ?)", VERSION + 1, b"who knows what"
    )
    assert_as_it_was(peek(journal_file.parent, facts)[0])


@pytest.mark.parametrize("kept", [100, 5000, 40000])
def test_a_file_that_was_cut_off_keeps_what_is_whole(
    journal_file: Path, facts: FactStore, kept: int
) -> None:
    whole = events(journal_file.parent, facts)
    journal_file.write_bytes(unpacked("journal.sqlite")[:kept])
    (past,) = past_sessions()
    assert "opening the session again keeps what is whole" in past.problem
    told = notices()
    assert any("damaged" in message and str(journal_file) in message for message in told)
    found = {seq: data for seq, data in events(journal_file.parent, facts).items() if seq in whole}
    # After the events that are whole, those that said so.
    assert sum(whole[seq] == data for seq, data in found.items()) >= len(found) - 2
    assert len(found) > {100: 0, 5000: 0, 40000: 100}[kept]


def test_an_event_that_is_damaged_is_named_and_left_out(
    journal_file: Path, facts: FactStore
) -> None:
    execute(journal_file, "UPDATE events SET bytes = ? WHERE seq = 12", b"\xc1\x00damaged")
    (past,) = past_sessions()
    assert "event 12 cannot be read" in past.problem
    journal = Journal(journal_file.parent, facts)
    assert "number 12 and whatever followed" in journal.recovered
    assert 12 not in dict(journal.read())
    journal.close()


def test_a_store_of_facts_that_is_damaged_is_named_and_replaced(journal_file: Path) -> None:
    content = b"not a database at all" * 100
    facts_file().write_bytes(content)
    told = notices()
    assert any("facts.sqlite" in message and "are kept" in message for message in told)
    assert facts_file().with_name("facts.sqlite.damaged").read_bytes() == content


def test_facts_that_are_damaged_are_as_if_they_had_never_been_measured(
    journal_file: Path, facts: FactStore
) -> None:
    keys = [key for (key,) in rows(facts_file(), "SELECT key FROM facts")]
    execute(facts_file(), "UPDATE facts SET data = ? WHERE key = ?", b"\xc1\x00damaged", keys[0])
    assert keys[0] not in facts.get_many(keys)
    assert "1 measurements in" in facts.damage()[0]
    facts.put(keys[:1], [p.Control("x", 0.0, 0.0)])
    assert facts.get(keys[0]) == p.Control("x", 0.0, 0.0)
