"""What there is to open: past sessions, checkpoints in the hub's cache, and a look at a path.

All of it is read without holding, starting or loading anything: an engine that runs meanwhile is
not disturbed, no tensor library is imported and nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.session import Session
from engine.store.journal import FactStore, StoreError, peek
from engine.store.paths import facts_file, state_folder

LOOK_SECONDS = 20.0
"""How long a look at a path may take; headers on a slow network drive need their time."""


class PastSession(msgspec.Struct, frozen=True, kw_only=True):
    """One session as its journal tells it; NaN and 0 stand for what it does not tell."""

    name: str
    source: str = ""
    """``demo``, a folder, or a hub id: what to open."""
    when: float = 0.0
    """Time of its last event, in seconds since 1970."""
    running: bool = False
    """Whether an engine holds it now."""
    checkpoint: str = ""
    """The checkpoint's name."""
    architecture: str = ""
    parameters: int = 0
    layers: int = 0
    changed: int = 0
    """Layers that its recipe does not keep."""
    measured: int = 0
    """Layers with a measured sensitivity in some format."""
    ppl_reference: float = float("nan")
    ppl_recipe: float = float("nan")
    """The recipe's measured perplexity."""
    bits_per_weight: float = float("nan")
    problem: str = ""
    """Why it cannot be read, or opened again, in a sentence."""


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What a path or a hub id turned out to be, from headers alone."""

    source: str
    name: str = ""
    path: str = ""
    """The folder; empty where there is none yet."""
    architecture: str = ""
    parameters: int = 0
    """0 where only reading the weights would tell."""
    bytes: int = 0
    dtype: str = ""
    layers: int = 0
    note: str = ""
    """Something to know that stops nothing: from the cache, to be downloaded, stored in fp8."""
    problem: str = ""
    """Why it cannot be opened, in a sentence; empty where nothing is known against it."""
    advice: str = ""
    """What to do instead, where that can be told."""


# --- past sessions -------------------------------------------------------------------------------


def past_sessions(limit: int = 50) -> list[PastSession]:
    """The sessions of this user, the last used first.

    One that cannot be read is among them with its ``problem``.
    """
    found: list[tuple[float, Path]] = []
    try:
        folders = list((state_folder() / "sessions").iterdir())
    except OSError:
        return []
    for folder in folders:
        written = [_changed_at(folder / f"journal.sqlite{end}") for end in ("", "-wal")]
        if any(written):
            found.append((max(written), folder))
    found.sort(key=lambda one: (-one[0], one[1].name))
    with _facts() as facts:
        sessions = [_past(folder, touched, facts) for touched, folder in found[: max(0, limit)]]
    kept = [session for session in sessions if session.source or session.problem]
    return sorted(kept, key=lambda session: -session.when)


@contextmanager
def _facts() -> Iterator[FactStore | None]:
    try:
        facts = FactStore(facts_file(), read_only=True)
    except EngineError:  # none was measured yet
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
        return _told(folder.name, session, when, running)
    except StoreError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - one broken journal must not hide the others
        reason = " ".join(str(error).split())
        problem = (
            f"{folder / 'journal.sqlite'} cannot be read ({type(error).__name__}: {reason}): "
            "move the file away to begin a new history; measurements are kept elsewhere"
        )
    return PastSession(name=folder.name, when=touched, running=running, problem=problem)


def _told(name: str, session: Session, when: float, running: bool) -> PastSession:
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
        problem=f"{session.source} is no longer there" if gone else "",
    )


def is_running(folder: Path) -> bool:
    """Whether an engine holds the session in ``folder``."""
    try:
        with (folder / "lock").open() as lock:
            os.kill(int(lock.read().strip() or "x"), 0)
            # The lock is tried only where its holder's number is alive: it may be another's now.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except (OSError, ValueError):  # no lock, no number in it, no such process
        return False


def _changed_at(path: Path) -> float:
    """When a file was written to; 0 if it is absent or empty, as a reader leaves a ``-wal``."""
    try:
        status = path.stat()
    except OSError:
        return 0.0
    return status.st_mtime if status.st_size else 0.0


# --- the hub's cache -----------------------------------------------------------------------------


def hub_folder() -> Path:
    """Where the hub's client keeps what it downloaded, by its own environment variables."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expandvars(given)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def hub_cache() -> list[str]:
    """Ids of the models in the local cache, in alphabetical order; whole or not."""
    found = []
    try:
        for folder in hub_folder().iterdir():
            kind, _, name = folder.name.partition("--")
            if kind == "models" and name and any((folder / "snapshots").glob("*")):
                found.append(name.replace("--", "/"))
    except OSError:
        return sorted(found, key=str.lower)
    return sorted(found, key=str.lower)


# --- a look at a path ----------------------------------------------------------------------------


async def look(
    source: str, *, trust_remote_code: bool = False, timeout: float = LOOK_SECONDS
) -> Looked:
    """What ``source`` is, found out by a process of its own, which ends with this call.

    Never raises but for cancellation: what went wrong is the ``problem``.
    """
    words = [sys.executable, "-P", "-m", "engine.opening.inspect"]
    words += ["--trust-remote-code"] if trust_remote_code else []
    try:
        process = await asyncio.create_subprocess_exec(
            *words, "--", source,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return Looked(source=source, problem=f"{source} cannot be looked at: {error}")
    try:
        async with asyncio.timeout(timeout):
            told, complaint = await process.communicate()
    except TimeoutError:
        return Looked(
            source=source,
            problem=f"{source} could not be read within {timeout:.0f} s",
            advice="the drive it lies on may be slow or gone; opening it waits longer",
        )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(told, type=Looked)
    except msgspec.DecodeError:
        lines = complaint.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit code {process.returncode}"
        return Looked(source=source, problem=f"{source} could not be looked at: {why}")
