"""One file of facts, opened several times: in one process, by others, and while it is replaced."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from engine import protocol as p
from engine.store import recovery
from engine.store.carving import carved
from engine.store.facts import FactStore
from engine.store.paths import StateFolderError

ANOTHER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(*[key for (key,) in db.execute("SELECT key FROM facts ORDER BY key")])
db.close()
"""


def seen_by_another_process(path: Path) -> list[str]:
    """Keys that another process finds, which opens the file and closes it."""
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def fact(number: int) -> p.Control:
    return p.Control(f"layer {number}", number / 3, 0.25)


def test_a_second_store_in_this_process_takes_no_lock_from_the_first(tmp_path: Path) -> None:
    """Else the other process would take itself for the last, and delete the log of this one."""
    path = tmp_path / "facts.sqlite"
    with closing(FactStore(path)) as first, closing(FactStore(path)) as second:
        first.put(["a"], [fact(0)])
        assert seen_by_another_process(path) == ["a"]
        first.put(["b"], [fact(1)])
        second.put(["c"], [fact(2)])
        assert seen_by_another_process(path) == ["a", "b", "c"]
    assert seen_by_another_process(path) == ["a", "b", "c"]


def test_a_store_that_could_not_be_replaced_is_replaced_at_its_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise StateFolderError("the disk is full")

    store = FactStore(tmp_path / "facts.sqlite")
    store.put(["a"], [fact(0)])
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with store.path.open("r+b") as file:
        file.seek(-60, 2)
        file.write(b"\xff" * 60)
    with monkeypatch.context() as patched:
        patched.setattr(recovery, "rebuild", full)
        with pytest.raises(StateFolderError):
            store.verify()
        with pytest.raises(StateFolderError):
            store.put(["b"], [fact(1)])
    store.put(["b"], [fact(1)])
    assert store.get("b") == fact(1)
    assert store.damage()
    store.close()


def test_facts_that_are_found_by_other_keys_than_they_have_are_damage(tmp_path: Path) -> None:
    with closing(FactStore(tmp_path / "facts.sqlite")) as store:
        store.put(["a"], [fact(0)])
        store._file.connection.text_factory = lambda data: data.decode() + "?"
        store._file.connection.execute("DELETE FROM facts WHERE key = 'b'")
        assert store.get("a") == fact(0)
        assert store.get("a") == fact(0)


def test_many_long_rows_are_carved_in_time_that_grows_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA page_size = 512")
        db.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, b BLOB)")
        db.executemany("INSERT INTO t VALUES (?, ?)", ((n, bytes(1500)) for n in range(8000)))
        db.commit()
    content = path.read_bytes()
    begun = time.thread_time()
    assert sum(one.values == (None, bytes(1500)) for one in carved(content)) == 8000
    assert time.thread_time() - begun < 2
