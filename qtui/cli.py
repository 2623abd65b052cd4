"""The command line: every command, and the terminal interface as one of them.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 the
checkpoint or text cannot be read, 4 out of memory, 5 infeasible, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

from engine import protocol as p
from engine.client import start_ahead
from engine.errors import EngineError, UsageError
from engine.profiles import DEFAULT_PROFILE, load_profile
from engine.session import Session
from qtui import documents, headless, schema, tables
from qtui.options import (
    AsciiOption,
    FormatsOption,
    FpsOption,
    JsonOption,
    ModelArgument,
    Shared,
    ThemeOption,
    located_model,
    not_yet,
    shares_options,
    split_formats,
)
from qtui.progress import Meter, put
from qtui.recipe_file import read_recipe
from qtui.text import printable

COMMANDS = ("open", "demo", "triage", "sweep", "eval", "doctor")
"""What a first argument may name; anything else is a MODEL."""
PLANNED = ("diagnose", "plan", "export", "report", "compare", "sessions", "attach", "stop")
"""Names kept for commands to come, so that they are not taken for a MODEL."""

INTERRUPTED = 130
AnyDocument = TypeVar("AnyDocument", bound=msgspec.Struct)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit; a first argument that names no command is a MODEL."""
    given = list(sys.argv[1:] if argv is None else argv)
    first = given[0] if given else ""
    if first in PLANNED:
        _complain(f"`qtui {first}` cannot be used yet")
        sys.exit(UsageError.exit_code)
    if first not in (*COMMANDS, "-h", "--help", "--version"):
        given.insert(0, "open")
    app(args=given, prog_name="qtui")
    sys.exit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(sys.stdout, f"qtui {version('qtui')}\n")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Which layers break when a checkpoint is quantised, by how much, and why.

    `qtui MODEL` opens the terminal interface on a folder or a hub id, `qtui demo` on the bundled
    checkpoint. `qtui COMMAND --help` tells a command's options.
    """


@app.command("open", hidden=True)
@shares_options
def open_model(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="demo, a folder, or a hub id")
    ] = None,
    ascii: AsciiOption = False,
    theme: ThemeOption = None,
    fps: FpsOption = None,
    *,
    shared: Shared,
) -> None:
    """The terminal interface on MODEL, or on one chosen on its start screen."""
    with _telling():
        _show(model, shared, ascii=ascii, theme=theme, fps=fps)


@app.command()
@shares_options
def demo(
    ascii: AsciiOption = False,
    theme: ThemeOption = None,
    fps: FpsOption = None,
    *,
    shared: Shared,
) -> None:
    """The terminal interface on the bundled checkpoint."""
    with _telling():
        _show("demo", shared, ascii=ascii, theme=theme, fps=fps)


@app.command()
@shares_options
def triage(
    model: ModelArgument,
    formats: FormatsOption = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="activations too (not yet)")
    ] = False,
    histogram: Annotated[
        str | None,
        typer.Option(
            "--histogram",
            metavar="LAYER",
            help="a layer's histogram, in the document; with --formats the grid of the first",
        ),
    ] = None,
    bins: Annotated[
        int, typer.Option("--bins", metavar="N", min=1, max=100_000, help="bins of --histogram")
    ] = 120,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts", metavar="LAYER", help="every expert of a fused layer, in the document"
        ),
    ] = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Outliers, faults and errors of every layer's weights.

    Reads the files alone: no forward pass, and one layer in memory at a time.
    """
    with _telling():
        settings, _ = shared.resolve()
        if activations:
            raise not_yet("--activations", "triage reads weights only")
        if (histogram or experts) and json is None:
            raise UsageError(
                "--histogram and --experts stand in the document: give --json PATH or --json -"
            )
        _check_destination(json)
        wanted = split_formats(formats)
        ask = p.Triage(wanted or settings.formats)
        questions: list[headless.Question] = []
        if histogram:
            questions.append(p.AskHistogram(histogram, bins, (wanted or ("",))[0]))
        if experts:
            questions.append(p.AskExperts(experts))
        outcome = _measure(model, settings, ask, questions)
        document = documents.triage_document(outcome.session, outcome.job, outcome.answers)
        _publish(document, tables.triage_text, json)


@app.command()
@shares_options
def sweep(
    model: ModelArgument,
    formats: FormatsOption = None,
    exact: Annotated[
        str, typer.Option("--exact", metavar="all", help="which layers are measured")
    ] = "all",
    direction: Annotated[
        str, typer.Option("--direction", metavar="degrade", help="change each layer alone")
    ] = "degrade",
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Sensitivity of every layer.

    Perplexity and KL with that layer alone quantised, beside the unchanged model's.
    """
    with _telling():
        settings, _ = shared.resolve()
        if exact != "all":
            raise not_yet(f"--exact {exact}", "there are no estimates, every layer is measured")
        if direction != "degrade":
            raise not_yet(f"--direction {direction}", "a sweep changes one layer at a time")
        _check_destination(json)
        ask = p.Sweep(split_formats(formats) or settings.sweep_formats)
        outcome = _measure(model, settings, ask)
        document = documents.sweep_document(outcome.session, outcome.formats, job=outcome.job)
        _publish(document, tables.sweep_text, json)


@app.command("eval")
@shares_options
def evaluate(
    model: ModelArgument,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="F everywhere, head and embedding kept"),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="FILE", help="a recipe file")
    ] = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Perplexity and KL of a recipe."""
    with _telling():
        settings, _ = shared.resolve()
        if (format is None) == (recipe is None):
            raise UsageError("qtui eval takes one of --format F and --recipe FILE")
        _check_destination(json)
        name = format if format is not None else str(recipe)
        ask: headless.Ask = (
            p.Evaluate(format=format) if format is not None else _from_file(str(recipe))
        )
        outcome = _measure(model, settings, ask)
        assert outcome.score is not None
        document = documents.eval_document(
            outcome.session, outcome.score, name, outcome.formats, outcome.job
        )
        _publish(document, tables.eval_text, json)


@app.command()
def doctor(
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-P", metavar="NAME", help="each value of a profile, and who wrote it"
        ),
    ] = None,
    keymap: Annotated[
        bool, typer.Option("--keymap", help="every action with its keys, as a keymap.toml")
    ] = False,
    json: JsonOption = None,
) -> None:
    """What this installation stands on.

    Versions, devices, terminal and paths: one block to paste in a bug report.
    """
    with _telling():
        if keymap:
            from qtui.actions import known_keys
            from qtui.keymap import keymap_template

            keys = load_profile(profile or DEFAULT_PROFILE).keys
            put(sys.stdout, keymap_template(known_keys(keys)))
            return
        from qtui.doctor import examine, report_text

        _check_destination(json)
        _publish(examine(profile), report_text, json)


# --- what commands are made of -------------------------------------------------------------------


def _show(
    model: str | None, shared: Shared, *, ascii: bool, theme: str | None, fps: int | None
) -> None:
    _, profile = shared.resolve()
    if not _has_terminal():
        name = "MODEL" if model is None else printable(model)
        raise UsageError(
            f"there is no terminal to draw on: use `qtui triage {name}`, `qtui sweep {name}` or "
            f"`qtui eval {name} --format F`"
        )
    source = None if model is None else located_model(model)
    # The engine imports its libraries while the first frame is drawn.
    started = None if source is None else start_ahead(source, nice=profile.nice)
    try:
        from qtui.opening import interface

        code = interface(source, shared, ascii=ascii, theme=theme, fps=fps, started=started)
    except BaseException:
        if started is not None:
            started.terminate()
        raise
    raise typer.Exit(code)


def _has_terminal() -> bool:
    return sys.stdout.isatty() and sys.stdin.isatty()


def _measure(
    model: str,
    settings: p.Settings,
    ask: headless.Ask,
    questions: Sequence[headless.Question] = (),
) -> headless.Outcome:
    with _terminated_as_interrupted():
        source = located_model(model)
        return headless.measure(source, settings, ask, Meter(sys.stderr), questions)


def _from_file(given: str) -> Callable[[Session], p.Evaluate]:
    path = Path(given).expanduser()
    if not path.exists() and path.suffix != ".toml" and path.name == given:
        raise not_yet(f"--recipe {given}", "there are no recipes by name, and no file of that name")
    recipe = read_recipe(path)

    def ask(session: Session) -> p.Evaluate:
        name = session.checkpoint.name if session.checkpoint is not None else session.source
        if recipe.checkpoint not in (None, name, session.source):
            _complain(f"{path} was written for {recipe.checkpoint}: here it is used on {name}")
        return p.Evaluate(format=recipe.default, layers=recipe.resolve(session))

    return ask


def _check_destination(json: str | None) -> None:
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


def _publish(
    document: AnyDocument, as_text: Callable[[AnyDocument], str], json: str | None
) -> None:
    """Print what was found; as a document too, or alone, where one was asked for."""
    if json == "-":
        put(sys.stdout, schema.encode(document).decode())
        return
    if json is not None:
        schema.write(document, Path(json).expanduser())
    put(sys.stdout, as_text(document))


@contextmanager
def _telling() -> Iterator[None]:
    """Tell what went wrong in a sentence, and exit with its code."""
    try:
        yield
    except EngineError as error:
        _complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        _complain("interrupted: what was measured is kept, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError as error:
        # Whoever read stdout has left; the interpreter must not find that out again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except MemoryError as error:
        _complain("memory ran out: lower --tokens or --memory-budget, or choose --dtype bf16")
        raise typer.Exit(4) from error
    except OSError as error:
        _complain(str(error))
        raise typer.Exit(1) from error


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run as ``ctrl+c`` does, with what it measured kept."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(message: str) -> None:
    lines = [printable(line) for line in message.splitlines()]
    put(sys.stderr, "qtui: " + "\n".join(lines) + "\n")
