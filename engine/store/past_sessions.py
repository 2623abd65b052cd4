"""Past sessions, read from their journals.

They are read without locking them or starting anything: a running engine is not disturbed, and no
tensor library is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.session import Session
from engine.store.database import StoreError
from engine.store.facts import FactStore
from engine.store.journal import peek
from engine.store.lock import is_running, take
from engine.store.paths import StateFolderError, facts_file, state_folder


class PastSession(msgspec.Struct, frozen=True, kw_only=True):
    """One session, read from its journal; NaN and 0 mean unknown."""

    name: str
    source: str = ""
    """``demo``, a folder, or a hub id: what to open."""
    when: float = 0.0
    """Time of its last event, in seconds since 1970."""
    running: bool = False
    """Whether an engine has it open now."""
    checkpoint: str = ""
    """The checkpoint's name."""
    architecture: str = ""
    parameters: int = 0
    layers: int = 0
    changed: int = 0
    """Number of layers that its recipe quantises."""
    measured: int = 0
    """Number of layers with a measured sensitivity in some format."""
    ppl_reference: float = float("nan")
    ppl_recipe: float = float("nan")
    """The recipe's measured perplexity."""
    bits_per_weight: float = float("nan")
    problem: str = ""
    """Why it cannot be read or opened again, as a sentence."""


def past_sessions(limit: int = 50, *, only_running: bool = False) -> list[PastSession]:
    """The user's sessions, most recently used first.

    A session that cannot be read is included, with its ``problem``; what was never found to be a
    checkpoint is not.

    Args:
        limit: most that are read.
        only_running: leave out those that no engine has open, without reading them.
    """
    found: list[tuple[float, Path]] = []
    try:
        folders = list((state_folder() / "sessions").iterdir())
    except (OSError, StateFolderError):
        return []
    for folder in folders:
        if only_running and not is_running(folder):
            continue
        written = [_changed_at(folder / f"journal.sqlite{end}") for end in ("", "-wal")]
        if any(written):
            found.append((max(written), folder))
    found.sort(key=lambda one: (-one[0], one[1].name))
    with _facts() as facts:
        sessions = [_past(folder, touched, facts) for touched, folder in found[: max(0, limit)]]
    kept = [
        session
        for session in sessions
        if session.checkpoint or session.running or (session.problem and not session.source)
    ]
    return sorted(kept, key=lambda session: -session.when)


def remove_session(name: str) -> None:
    """Remove a session: its history, recipes and log. Results are stored separately and stay.

    Raises:
        SessionBusyError: an engine has it open.
        StateFolderError: it cannot be removed.
    """
    folder = state_folder() / "sessions" / name
    if name in ("", ".", "..") or name != folder.name or not folder.is_dir():
        return
    with take(folder / "lock", 0.0):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise StateFolderError(
                f"{folder} cannot be removed: {error.strerror or error}"
            ) from error


@contextmanager
def _facts() -> Iterator[FactStore | None]:
    try:
        facts = FactStore(facts_file(), read_only=True)
    except EngineError:  # nothing was measured yet
        yield None
        return
    try:
        yield facts
    finally:
        facts.close()


def _past(folder: Path, touched: float, facts: FactStore | None) -> PastSession:
    running = is_running(folder)
    try:
        session, when = peek(folder, facts)
        return _summary(folder.name, session, when, running)
    except StoreError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - one broken journal must not hide the others
        reason = " ".join(str(error).split())
        problem = (
            f"{folder / 'journal.sqlite'} cannot be read ({type(error).__name__}: {reason}): "
            "move the file away to start a new history; results are stored separately and kept"
        )
    return PastSession(name=folder.name, when=touched, running=running, problem=problem)


def _summary(name: str, session: Session, when: float, running: bool) -> PastSession:
    checkpoint, score = session.checkpoint, session.score()
    columns = list(session.effects.measured.values())
    gone = session.source.startswith("/") and not Path(session.source).exists()
    return PastSession(
        name=name,
        source=session.source,
        when=when,
        running=running,
        checkpoint=checkpoint.name if checkpoint is not None else "",
        architecture=checkpoint.architecture if checkpoint is not None else "",
        parameters=checkpoint.parameters if checkpoint is not None else 0,
        layers=len(session.layers.names),
        changed=len(session.changed),
        measured=sum(any(known) for known in zip(*columns, strict=True)),
        ppl_reference=session.baseline.ppl if session.baseline is not None else float("nan"),
        ppl_recipe=score.ppl if score is not None else float("nan"),
        bits_per_weight=session.bits_per_weight(),
        problem=f"{session.source} no longer exists" if gone else "",
    )


def _changed_at(path: Path) -> float:
    """When a file was written to; 0 if it is absent or empty, as a reader leaves a ``-wal``."""
    try:
        status = path.stat()
    except OSError:
        return 0.0
    return status.st_mtime if status.st_size else 0.0
