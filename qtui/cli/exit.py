"""How a command ends: its output, its error messages, its exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import typer

from engine.errors import EngineError, UsageError
from engine.report import json as json_output
from qtui.cli.progress import put
from qtui.views.text import printable

if TYPE_CHECKING:
    from engine.client import InProcess

INTERRUPTED = 130
RESUME_HINT = "results are saved; run the command again to resume"
AnyDocument = TypeVar("AnyDocument", bound=msgspec.Struct)


def check_destination(json: str | None) -> None:
    """Check that the JSON file can be written, before spending hours on a run.

    Raises:
        UsageError: it cannot.
    """
    if json is not None and json != "-":
        check_file("--json", json, Path(json).expanduser())


def check_file(option: str, given: str, path: Path) -> None:
    """Check that a file can be written: a new one or over an old one.

    Args:
        given: the path as it was typed after the option.

    Raises:
        UsageError: it cannot.
    """
    if path.is_dir():
        raise UsageError(f"{option} {given} is a folder, expected a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{option} {given}: folder {folder} does not exist")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise UsageError(f"{option} {given} cannot be written")


def publish(document: AnyDocument, as_text: Callable[[AnyDocument], str], json: str | None) -> None:
    """Print the results, and write the JSON document; with ``--json -`` print that alone."""
    if json == "-":
        put(sys.stdout, json_output.encode(document).decode())
        return
    if json is not None:
        json_output.write(document, Path(json).expanduser())
    # A checkpoint's names are in it, which a terminal must not obey.
    lines = [printable(line) for line in as_text(document).split("\n")]
    put(sys.stdout, "\n".join(lines))


@contextmanager
def reporting_errors(kept: str = RESUME_HINT) -> Iterator[None]:
    """Print an error as a sentence, and exit with its code.

    Args:
        kept: what happens to the results of an interrupted command.
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
        # The reader of stdout is gone: without this the interpreter fails again as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except MemoryError as error:
        print_error("out of memory: lower --tokens or --memory-budget, or choose --dtype bf16")
        raise typer.Exit(4) from error
    except OSError as error:
        print_error(str(error))
        raise typer.Exit(1) from error


@contextmanager
def closed_in_the_end(engine: InProcess) -> Iterator[InProcess]:
    """Close an engine of this process; an interrupt while it closes ends the process at once.

    Its thread computes then, and the interpreter would end that within torch, which aborts.
    """
    try:
        yield engine
    finally:
        try:
            engine.close()
        except KeyboardInterrupt:
            print_error("interrupted while closing: ended at once; what was measured is saved")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM like ``ctrl+c``: the results are saved."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_error(message: str) -> None:
    """Print a message of the program on stderr."""
    lines = [printable(line) for line in message.splitlines()]
    put(sys.stderr, "qtui: " + "\n".join(lines) + "\n")
