"""A journal and a store cut off or changed at any byte: what is whole stays, the rest is named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engine import protocol as p
from engine.service.engine import Engine
from engine.session import Session, apply
from engine.store.facts import FactStore
from engine.store.journal import Journal
from tests.faults.table import put

EVERY = pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.soak)])
"""Bytes from one damage to the next."""
KEYS = [f"{number:064x}" for number in range(16)]
FACTS = [p.Control(f"layer {number}", number / 3, 0.25) for number in range(16)]
EVENTS: list[p.Event] = [
    p.Opened("demo", p.Settings(), {"torch": "2"}),
    p.LayersListed(
        names=["a", "b"], kinds=["q_proj", "lm_head"], blocks=[0, -1], roles=["linear", "head"],
        shapes=[(4, 8), (16, 8)], dtypes=["float16", "float16"], other_bytes=10,
    ),
    *(p.Learned((key,), (fact,)) for key, fact in zip(KEYS, FACTS, strict=True)),
    p.RecipeChanged(how="set", layers=["a"], before=["fp16"], after=["int8"], bits=[300]),
    p.Notice("info", "too long for one page: " + "x" * 900),
    *(p.Notice("info", f"event {number}") for number in range(8)),
]  # fmt: skip


GOES_ON = p.RecipeChanged(how="set", layers=["a"], before=["fp16"], after=["int4"], bits=[200])


def small_pages(path: Path) -> None:
    """A database of small pages: a short file has inner pages, and rows longer than a page."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[FactStore]:
    small_pages(tmp_path / "facts.sqlite")
    store = FactStore(tmp_path / "facts.sqlite")
    store.put(KEYS, FACTS)
    yield store
    store.close()


@pytest.fixture
def written(tmp_path: Path, facts: FactStore) -> Path:
    """A closed journal of `EVENTS`, the last ten of them after a snapshot."""
    folder = tmp_path / "written"
    folder.mkdir()
    small_pages(folder / "journal.sqlite")
    journal = Journal(folder, facts)
    session = Session()
    for event in EVENTS:
        apply(session, event, journal.append(event))
    journal.close()
    return folder / "journal.sqlite"


def damaged(whole: bytes, step: int) -> Iterator[bytes]:
    """With bits of one byte changed at each step, and cut off at every fourth."""
    for number, at in enumerate(range(step // 2 or 1, len(whole), step)):
        if number % 4 == 0 or step == 1:
            yield whole[:at]
        changed = bytearray(whole)
        changed[at] ^= 0xFF if at % 3 else 1 << at % 8
        yield bytes(changed)


def opened(folder: Path, facts: FactStore, journal: bytes, log: bytes = b"") -> Journal:
    """A journal of these bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "journal.sqlite").write_bytes(journal)
    if log:
        (folder / "journal.sqlite-wal").write_bytes(log)
    return Journal(folder, facts)


def check(journal: Journal) -> None:
    """Every event that is there is as it was written; what is lost was said; and it goes on."""
    found = dict(journal.read())
    wrong = {seq: event for seq, event in found.items() if EVENTS[seq - 1] != event}
    assert not wrong
    if len(found) < len(EVENTS):
        assert "history of this session was damaged" in journal.recovered
        assert str(journal.path) in journal.recovered
        missing = set(range(1, max(found, default=0))) - set(found)
        assert all(str(number) in journal.recovered or len(missing) > 1 for number in missing)
    journal.fold()
    seq = journal.append(GOES_ON)
    journal.close()
    again = Journal(journal.folder, journal.facts, patience=0.0)
    assert again.recovered == ""
    assert [number for number, _ in again.read()] == [*found, seq]
    again.close()


@EVERY
def test_a_journal(step: int, tmp_path: Path, written: Path, facts: FactStore) -> None:
    whole = written.read_bytes()
    pages = len(whole) // 512
    assert pages > 10
    most_lost = 0
    for content in damaged(whole, step):
        journal = opened(tmp_path / "damaged", facts, content)
        if len(content) == len(whole):
            most_lost = max(most_lost, len(EVENTS) - len(list(journal.read())))
        check(journal)
    assert most_lost <= 8, "one byte damages one page at most"
    if step == 1:
        put("a journal, its log", f"every byte, {2 * len(whole):,} journals: 0")


@EVERY
def test_a_journal_whose_engine_was_killed(
    step: int, tmp_path: Path, written: Path, facts: FactStore
) -> None:
    """Everything is in the log still, and the log is damaged."""
    folder = tmp_path / "killed"
    folder.mkdir()
    small_pages(folder / "journal.sqlite")
    journal = Journal(folder, facts)
    for event in EVENTS:
        journal.append(event)
    journal.commit()
    content = (folder / "journal.sqlite").read_bytes()
    log = (folder / "journal.sqlite-wal").read_bytes()
    journal.close()
    for each in damaged(log, step * 5):
        journal = opened(tmp_path / "damaged", facts, content, each)
        found = dict(journal.read())
        assert all(EVENTS[seq - 1] == event for seq, event in found.items())
        if len(each) == len(log) and len(found) < len(EVENTS):
            assert "damaged" in journal.recovered
        journal.fold()
        journal.close()


@EVERY
def test_a_store_of_facts(step: int, tmp_path: Path, facts: FactStore) -> None:
    facts.close()
    whole = facts.path.read_bytes()
    path = tmp_path / "damaged" / "facts.sqlite"
    for content in damaged(whole, step if step == 1 else step * 4):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(content)
        store = FactStore(path)
        found = store.get_many(KEYS)
        said = store.damage()
        assert all(FACTS[KEYS.index(key)] == fact for key, fact in found.items())
        if len(found) < len(KEYS):
            assert any("measurements" in sentence and str(path) in sentence for sentence in said)
        store.put(KEYS, FACTS)
        store.close()
        again = FactStore(path)
        assert list(again.get_many(KEYS).values()) == FACTS
        assert again.damage() == []
        again.close()


def test_who_has_the_store_open_follows_when_another_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "facts.sqlite"
    first = FactStore(path)
    first.put(KEYS[:5], FACTS[:5])
    content = bytearray(path.read_bytes())
    content[1000:] = bytes(len(content) - 1000)
    path.write_bytes(content)
    second = FactStore(path)
    first.put(KEYS[5:10], FACTS[5:10])
    second.put(KEYS[10:], FACTS[10:])
    first.close()
    assert set(KEYS[5:]) <= set(second.get_many(KEYS))
    second.close()
    third = FactStore(path)
    assert set(KEYS[5:]) <= set(third.get_many(KEYS))
    third.close()


def test_a_large_store_is_checked_when_there_is_nothing_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.fact_file.CHECKED", 0)
    facts = FactStore(tmp_path / "large.sqlite")
    facts.put(KEYS, FACTS)
    facts.close()
    content = facts.path.read_bytes()
    lost = KEYS[7]
    assert content.count(lost.encode()) == 1
    facts.path.write_bytes(content.replace(lost.encode(), lost[:-1].encode() + b"x"))
    others = [key for key in KEYS if key != lost]
    store = FactStore(facts.path)
    said: list[str] = []
    store.on_damage = lambda: said.extend(store.damage())
    assert lost not in store.get_many(KEYS)
    assert not said
    store.verify()
    assert f"{len(KEYS) - 1} are kept" in said[0]
    assert list(store.get_many(KEYS)) == others
    store.verify()
    assert len(said) == 1
    store.close()


def test_damage_that_shows_while_an_engine_runs_is_said(tmp_path: Path, facts: FactStore) -> None:
    told: list[p.AnyEvent] = []
    engine = Engine(Journal(None, facts), facts, lambda seq, event: told.append(event))
    facts._file.connection.execute("UPDATE facts SET data = x'00' WHERE key = ?", (KEYS[3],))
    assert KEYS[3] not in facts.get_many(KEYS)
    engine.close()
    (notice,) = [event for event in told if isinstance(event, p.Notice)]
    assert notice.level == "warning"
    assert "1 measurements in" in notice.message
