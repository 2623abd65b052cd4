"""The command line: every command, and the terminal interface as one of them.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 the
checkpoint or text cannot be read, 4 out of memory, 5 infeasible, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import msgspec
import typer

from engine import protocol as p
from engine.client import start_ahead
from engine.errors import UsageError
from engine.formats.grammar import needs_calibration, parse_format
from engine.profiles import DEFAULT_PROFILE, load_profile
from engine.recipes.file import KEPT, built_in, names_file, read_recipe
from engine.recipes.mixes import FIRST_LAST
from engine.report import documents, tables
from engine.session import Session
from qtui.cli import headless
from qtui.cli.exit import (
    check_destination,
    print_error,
    publish,
    reporting_errors,
    terminated_as_interrupted,
)
from qtui.cli.options import (
    AsciiOption,
    ByOption,
    DirectionOption,
    DrawsOption,
    ExactOption,
    FormatOption,
    FormatsOption,
    FpsOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    Shared,
    ThemeOption,
    expanded,
    located_model,
    not_yet,
    shares_options,
    split_formats,
    sweep_asked,
    with_draws,
)
from qtui.cli.progress import Meter, put
from qtui.views.text import printable

COMMANDS = ("open", "demo", "triage", "sweep", "eval", "export", "doctor")
"""What a first argument may name; anything else is a MODEL."""
PLANNED = ("diagnose", "plan", "report", "compare", "sessions", "attach", "stop")
"""Names kept for commands to come, so that they are not taken for a MODEL."""

TARGETS = {"checkpoint": "compressed-tensors, which transformers loads"}
"""What ``--to`` may name, and what it is."""
OfRecipe = TypeVar("OfRecipe", p.Evaluate, p.Export)

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
        print_error(f"`qtui {first}` cannot be used yet")
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
    with reporting_errors():
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
    with reporting_errors():
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
    with reporting_errors():
        settings, _ = shared.resolve()
        if activations:
            raise not_yet("--activations", "triage reads weights only")
        if (histogram or experts) and json is None:
            raise UsageError(
                "--histogram and --experts stand in the document: give --json PATH or --json -"
            )
        check_destination(json)
        wanted = split_formats(formats)
        ask = p.Triage(wanted or settings.formats)
        questions: list[headless.Question] = []
        if histogram:
            questions.append(p.AskHistogram(histogram, bins, (wanted or ("",))[0]))
        if experts:
            questions.append(p.AskExperts(experts))
        outcome = _measure(model, settings, ask, questions)
        document = documents.triage_document(outcome.session, outcome.job, outcome.answers)
        publish(document, tables.triage_text, json)


@app.command()
@shares_options
def sweep(
    model: ModelArgument,
    formats: FormatsOption = None,
    exact: ExactOption = "all",
    direction: DirectionOption = "degrade",
    by: ByOption = "layer",
    draws: DrawsOption = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Sensitivity of every layer.

    All layers and formats are estimated from a few passes; then layers are measured exactly, the
    worst first: perplexity and KL beside the unchanged model's with that layer alone quantised, or
    what keeping it alone wins back.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        settings = with_draws(settings, draws)
        check_destination(json)
        wanted = split_formats(formats)
        if wanted:
            # Who names formats wants to know of these alone.
            settings = msgspec.structs.replace(settings, estimate_formats=())
        ask = sweep_asked(wanted or settings.sweep_formats, direction, exact, by)
        outcome = _measure(model, settings, ask)
        document = documents.sweep_document(
            outcome.session, outcome.formats, ask.direction, outcome.job, ask.by, not wanted
        )
        publish(document, tables.sweep_text, json)


@app.command("eval")
@shares_options
def evaluate(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Perplexity and KL of a recipe.

    --recipe takes a file (with a suffix or a slash in its name) or the name of a built-in one:
    llama.cpp's mixes Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_0, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K and
    Q8_0, head and embedding included; or first-last, which gives the first and the last block a
    better format than --format F (int4-g128 unless given) has for the rest of the body.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        _check_recipe("eval", format, recipe)
        check_destination(json)
        ask = _of_recipe(recipe, p.Evaluate(format=format or "kept"))
        called = recipe if recipe is None or names_file(recipe) else built_in(recipe)
        name = " ".join(given for given in (called, format) if given is not None)
        outcome = _measure(model, settings, ask)
        assert outcome.score is not None
        document = documents.eval_document(
            outcome.session, outcome.score, name, outcome.formats, outcome.job
        )
        publish(document, tables.eval_text, json)


@app.command()
@shares_options
def export(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TARGET", help="checkpoint: in the form of compressed-tensors"
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="PATH", help="the folder to write")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the checkpoint that lies there")
    ] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """A recipe as a checkpoint that other programs load.

    What is written is what was measured, weight for weight. Reads the files alone, one layer in
    memory at a time; formats with +gptq load the model and calibrate as qtui eval does with the
    same options. The folder appears when it is whole.
    """
    with reporting_errors(kept=headless.NOT_WHOLE):
        settings, _ = shared.resolve()
        _check_recipe("export", format, recipe)
        _check_target(to)
        if not output:
            raise UsageError("qtui export takes -o PATH, the folder to write")
        check_destination(json)
        # The engine may run in another folder.
        written = p.Export(
            out=str(expanded(output).absolute()), format=format or "kept", overwrite=overwrite
        )
        ask = _of_recipe(recipe, written)
        solves = _calibrates(format, recipe)
        outcome = _measure(model, settings, ask, kind="export", calibrates=solves)
        assert outcome.exported is not None
        document = documents.export_document(
            outcome.session, outcome.exported, outcome.formats, outcome.job
        )
        publish(document, tables.export_text, json)


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
    with reporting_errors():
        if keymap:
            from qtui.screens.registry import known_keys
            from qtui.user.keymap import keymap_template

            keys = load_profile(profile or DEFAULT_PROFILE).keys
            put(sys.stdout, keymap_template(*known_keys(keys).values()))
            return
        from qtui.cli.doctor import examine, report_text

        check_destination(json)
        publish(examine(profile), report_text, json)


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
        from qtui.startup import interface

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
    kind: p.JobKind = "evaluate",
    *,
    calibrates: bool = False,
) -> headless.Outcome:
    with terminated_as_interrupted():
        source, meter = located_model(model), Meter(sys.stderr)
        return headless.measure(
            source, settings, ask, meter, questions, kind, calibrates=calibrates
        )


def _check_recipe(command: str, format: str | None, recipe: str | None) -> None:
    """Refuse what is no recipe, or is two."""
    both = format is not None and recipe is not None
    if both and not names_file(str(recipe)) and built_in(str(recipe)) == FIRST_LAST:
        return
    if both or (format is None and recipe is None):
        raise UsageError(
            f"qtui {command} takes one of --format F and --recipe FILE|NAME, and both with "
            f"--recipe {FIRST_LAST}"
        )


def _calibrates(format: str | None, recipe: str | None) -> bool:
    """Whether a format, or one of a recipe file, looks at calibration inputs."""
    formats = [format]
    if recipe is not None and names_file(recipe):
        read = read_recipe(Path(recipe).expanduser())
        formats += [read.default, *(held for _, held in read.lines)]
    return any(needs_calibration(parse_format(each)) for each in formats if each and each != KEPT)


def _of_recipe(given: str | None, command: OfRecipe) -> OfRecipe | Callable[[Session], OfRecipe]:
    """The command with a recipe, by its file or its name."""
    if given is None:
        return command
    if names_file(given):
        return _from_file(Path(given).expanduser(), command)
    return msgspec.structs.replace(command, recipe=built_in(given))


def _from_file(path: Path, command: OfRecipe) -> Callable[[Session], OfRecipe]:
    """The command with the recipe of a file, once it is known what the layers are called."""
    recipe = read_recipe(path)

    def ask(session: Session) -> OfRecipe:
        name = session.checkpoint.name if session.checkpoint is not None else session.source
        if recipe.checkpoint not in (None, name, session.source):
            print_error(f"{path} was written for {recipe.checkpoint}: here it is used on {name}")
        return msgspec.structs.replace(
            command, format=recipe.default, layers=recipe.resolve(session), recipe=recipe.recipe
        )

    return ask


def _check_target(to: str | None) -> None:
    there = ", ".join(f"{name} ({what})" for name, what in TARGETS.items())
    if to is None:
        raise UsageError(f"qtui export takes --to TARGET; there is {there}")
    if to not in TARGETS:
        raise not_yet(f"--to {to}", f"there is {there}")
