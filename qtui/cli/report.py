"""``qtui report``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.client import InProcess, own_process
from engine.diagnosis.serving import Serving
from engine.errors import EngineError, UsageError
from engine.export.serving import serving
from engine.export.target import targets
from engine.formats.grammar import parse_format
from engine.report import documents
from engine.report import schema as s
from engine.report.report_forms import REPORT_FORMS
from engine.report.reproduce import commands
from engine.report.tables.report import report_markdown
from engine.session import Session
from engine.store.facts import FactStore
from engine.store.files import write_whole
from engine.store.journal import peek
from engine.store.past_sessions import past_sessions
from engine.store.paths import facts_file, session_name, state_path
from qtui.cli.exit import (
    check_file,
    closed_in_the_end,
    print_error,
    reporting_errors,
    terminated_as_interrupted,
)
from qtui.cli.options import expanded
from qtui.cli.progress import put

HISTOGRAMS = 9
"""Layers whose histograms are on a page."""
ANSWER_SECONDS = 60.0
"""Seconds to wait for the next histogram; a page without it is written then."""


def report(
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="a session's name, or the MODEL it is about")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help=f"file to write: {', '.join(REPORT_FORMS)} (default: Markdown on standard output)",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="format whose effects are shown (default: the one swept)"
        ),
    ] = None,
    histograms: Annotated[
        bool, typer.Option(help="read the checkpoint for histograms of the worst layers")
    ] = True,
) -> None:
    """All that a session knows, as one page, Markdown or JSON.

    Verdict, findings, map of layers, size against quality, worst layers, the recipe, recipes
    tried, the protocol, and the commands that reproduce the figures. Nothing is measured. The page
    is one file without scripts, and loads nothing from the network.
    """  # fmt: skip
    with reporting_errors("nothing was written"):
        path = None if output is None else expanded(output)
        if path is not None:
            _check(path)
        wanted = "" if format is None else str(parse_format(format))
        name, known = _session(session)
        known_formats = [key.format for key in known.effects.known("degrade")]
        if wanted and wanted not in known_formats:
            there = ", ".join(dict.fromkeys(known_formats)) or "none"
            raise UsageError(f"--format {wanted}: no effect of it is known; known: {there}")
        made = datetime.now().astimezone().isoformat(timespec="seconds")
        where = _serving(known)
        document = documents.report_document(
            known, name, made, format=wanted, commands=commands(known), serving=where
        )
        if path is not None and path.suffix.lower() == ".html" and histograms:
            pictures = _histograms(known, document)
            document = documents.report_document(
                known,
                name,
                made,
                format=wanted,
                commands=document.commands,
                histograms=pictures,
                serving=where,
            )
        if path is None:
            put(typer.get_text_stream("stdout"), report_markdown(document))
            return
        write_whole(path, REPORT_FORMS[path.suffix.lower()](document))
        print_error(f"report written to {path}")


def _serving(session: Session) -> Serving:
    """What the session's recipe is tuned for; a target of a plugin that is gone is left aside."""
    said = session.tuned_for
    name = "" if said is None else said.target
    return serving(session, name if any(each.name == name for each in targets()) else "")


def _check(path: Path) -> None:
    """Refuse a path that cannot be written, before anything is read."""
    if path.suffix.lower() not in REPORT_FORMS:
        raise UsageError(f"-o {path}: expected a name that ends in {', '.join(REPORT_FORMS)}")
    check_file("-o", str(path), path)


def _session(given: str) -> tuple[str, Session]:
    """A session by its name, or by its checkpoint.

    Raises:
        UsageError: there is none; the message names those there are.
    """
    for name in (given, session_name(given)):
        folder = state_path() / "sessions" / name
        plain = "/" not in name and name not in ("", ".", "..")
        if not plain or not os.path.exists(folder / "journal.sqlite"):
            continue
        facts = FactStore(facts_file(), read_only=True)
        try:
            found, _ = peek(folder, facts)
        finally:
            facts.close()
        if found.checkpoint is None:
            raise UsageError(f"session {name} never read a checkpoint: there is nothing to report")
        return name, found
    there = ", ".join(each.name for each in past_sessions(8)) or "none"
    raise UsageError(f"no session {given!r}; known: {there} (see `qtui sessions`)")


def _histograms(session: Session, document: s.ReportDocument) -> Sequence[p.HistogramReady]:
    """Histograms of the layers that cost most; none where the checkpoint cannot be read."""
    layers = [row.name for row in worst(document)]
    known = [session.histograms[name] for name in layers if name in session.histograms]
    missing = [name for name in layers if name not in session.histograms]
    if not missing:
        return known
    # Beside the session: opening only the files there would forget its protocol.
    own_process(session.source)
    settings = msgspec.structs.replace(session.settings, fresh=False)
    try:
        with terminated_as_interrupted(), closed_in_the_end(InProcess(None)) as engine:
            for _ in engine.run(p.Open(session.source, settings)):
                pass
            for name in missing:
                engine.send(p.AskHistogram(name))
            answers = 0
            while answers < len(missing) and (event := engine.receive(ANSWER_SECONDS)) is not None:
                answers += isinstance(event, p.HistogramReady | p.Refused)
                if isinstance(event, p.HistogramReady):
                    known.append(event)
    except EngineError as error:
        print_error(f"no histograms: {error}")
    return sorted(known, key=lambda each: layers.index(each.layer))


def worst(document: s.ReportDocument) -> list[s.ReportLayer]:
    """Layers whose histograms are shown: those that cost most, else those with most error."""

    def cost(layer: s.ReportLayer) -> tuple[float, float]:
        effect = layer.effects.get(document.format)
        kl = effect.kl if effect is not None and effect.kl is not None else -1.0
        return kl, max((error or 0.0 for error in layer.errors.values()), default=0.0)

    return sorted(document.layers, key=cost, reverse=True)[:HISTOGRAMS]
