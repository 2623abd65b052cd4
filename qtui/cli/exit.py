"""How a command ends: what it prints where, what it says went wrong, and with which exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import typer

from engine.errors import EngineError, UsageError
from engine.report import schema
from qtui.cli.progress import put
from qtui.views.text import printable

INTERRUPTED = 130
KEPT = "what was measured is kept, the same command goes on from there"
AnyDocument = TypeVar("AnyDocument", bound=msgspec.Struct)


def check_destination(json: str | None) -> None:
    """Refuse a document that could not be written before hours are spent on it."""
    if json is None or json == "-":
        return
    path = Path(json).expanduser()
    if path.is_dir():
        raise UsageError(f"--json {json}: is a folder, expected a file or -")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--json {json}: there is no folder {folder}")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise UsageError(f"--json {json}: cannot be written to")


def publish(document: AnyDocument, as_text: Callable[[AnyDocument], str], json: str | None) -> None:
    """Print what was found; as a document too, or alone, where one was asked for."""
    if json == "-":
        put(sys.stdout, schema.encode(document).decode())
        return
    if json is not None:
        schema.write(document, Path(json).expanduser())
    put(sys.stdout, as_text(document))


@contextmanager
def reporting_errors(kept: str = KEPT) -> Iterator[None]:
    """Tell what went wrong in a sentence, and exit with its code.

    Args:
        kept: what becomes of the work that an interrupt ends.
    """
    try:
        yield
    except EngineError as error:
        print_error(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        print_error(f"interrupted: {kept}")
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError as error:
        # Whoever read stdout has left; the interpreter must not find that out again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except MemoryError as error:
        print_error("memory ran out: lower --tokens or --memory-budget, or choose --dtype bf16")
        raise typer.Exit(4) from error
    except OSError as error:
        print_error(str(error))
        raise typer.Exit(1) from error


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run as ``ctrl+c`` does, with what it measured kept."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_error(message: str) -> None:
    """Say something on stderr, as the program's own words."""
    lines = [printable(line) for line in message.splitlines()]
    put(sys.stderr, "qtui: " + "\n".join(lines) + "\n")
