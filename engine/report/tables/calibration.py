"""Calibration sets as text: a matrix of sets and evaluation texts, then what is against each."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import NOT_KNOWN, ppl
from engine.report.tables.layout import escaped, markdown, paragraphs, table
from engine.report.tables.parts import about, spent

BEST = "*"
"""Marks a set that no other beats on a text by more than chance."""
APART = ["set", "samples", "length", "above the best", "of as many samples", "fewer samples cost"]
"""Headings of the differences on one text."""


def calibration_text(document: s.CalibrateDocument) -> str:
    """Sets as rows, evaluation texts as columns, then the warnings."""
    headings, rows = matrix([each.name for each in document.texts], document.sets)
    return paragraphs(
        about(document.model),
        _told(document),
        table(headings, rows, {0}),
        legend(document.sets),
        *_told_apart(document, as_markdown=False),
        "\n".join(warning_lines(document.sets)),
        spent(document.timings, document.resumed),
    )


def calibration_markdown(document: s.CalibrateDocument) -> str:
    """The same as Markdown."""
    headings, rows = matrix([each.name for each in document.texts], document.sets)
    return paragraphs(
        f"# {escaped(printable(document.model.name))}: calibration sets for {document.method}",
        escaped(_told(document)),
        markdown([escaped(each) for each in headings], rows),
        escaped(legend(document.sets)),
        *_told_apart(document, as_markdown=True),
        "\n".join(f"- {escaped(line)}" for line in warning_lines(document.sets)),
    )


def matrix(
    texts: Sequence[str], sets: Sequence[s.CalibrationSetPart]
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a set with its samples, then KL·10³, its error and PPL on each text.

    Args:
        texts: names, in order.
        sets: the rows.
    """
    headings = ["set", "samples", "length"]
    for name in texts:
        headings += [f"KL·10³ {printable(name)}", "±", "PPL", "distance"]
    rows = []
    for part in sets:
        row = [printable(part.name), f"{part.samples}", f"{part.seq_len}"]
        by_text = {each.text: each for each in part.texts}
        for text in texts:
            row += _cells(by_text.get(text))
        rows.append(row)
    return headings, rows


def _cells(judged: s.JudgedPart | None) -> list[str]:
    if judged is None:
        return ["", "", "", ""]
    apart = "" if judged.distance is None else f"{judged.distance:.2f}"
    if isinstance(judged.kl, UnsetType) or isinstance(judged.ppl, UnsetType):
        return ["", "", "", apart]
    mark = BEST if judged.best is True else ""
    kl = "" if judged.kl is None else f"{1000 * judged.kl:.2f}{mark}"
    error = judged.kl_se
    se = "" if isinstance(error, UnsetType) or error is None else f"{1000 * error:.2f}"
    return [kl, se, ppl(judged.ppl), apart]


def differences(text: str, sets: Sequence[s.CalibrationSetPart]) -> list[list[str]]:
    """Rows under `APART`: how far KL·10³ of each set is above others, each with its interval.

    Args:
        text: that they were judged on.
        sets: the rows; those that were not measured are left out.
    """
    rows = []
    for part in sets:
        for judged in part.texts:
            if judged.text == text and not isinstance(judged.kl, UnsetType):
                cut = [printable(part.name), f"{part.samples}", f"{part.seq_len}"]
                others = (judged.above_best, judged.above_rival, judged.above_more)
                rows.append([*cut, *map(_against, others)])
    return rows


def _against(found: s.AgainstPart | UnsetType) -> str:
    if isinstance(found, UnsetType) or found.kl is None:
        return ""
    low, high = (NOT_KNOWN if end is None else f"{1000 * end:.2f}" for end in found.kl_ci95)
    return f"{1000 * found.kl:.2f} ({low} … {high})"


def _told_apart(document: s.CalibrateDocument, *, as_markdown: bool) -> list[str]:
    """A table for each text, with a line about it."""
    found = []
    for text in document.texts:
        rows = differences(text.name, document.sets)
        if len(rows) < 2:
            continue
        said = f"differences of KL·10³ on {printable(text.name)}, window by window, and their 95%"
        drawn = markdown(APART, rows) if as_markdown else table(APART, rows, {0})
        found += [escaped(said), drawn] if as_markdown else [f"{said}\n{drawn}"]
    return found


def _told(document: s.CalibrateDocument) -> str:
    protocol = document.protocol
    texts = ", ".join(f"{printable(e.name)} ({e.tokens:,} tokens)" for e in document.texts)
    return (
        f"{document.method} on every layer of the body, head and embedding kept; statistics of the "
        f"unchanged model\njudged on {texts}, window {protocol.seq_len}; {protocol.dtype} on "
        f"{protocol.device}"
    )


def legend(sets: Sequence[s.CalibrationSetPart]) -> str:
    """What the mark of the best means; empty if none has it."""
    if any(each.best is True for part in sets for each in part.texts):
        return f"{BEST} no set is better on this text beyond chance (95% interval)"
    return ""


def warning_lines(sets: Sequence[s.CalibrationSetPart]) -> list[str]:
    """One line for each finding, with the sets that it is about."""
    found: dict[str, list[str]] = {}
    for part in sets:
        for judged in part.texts:
            for each in judged.findings:
                row = f"{printable(part.name)} {part.samples} × {part.seq_len}"
                where = f"{row} on {printable(judged.text)}"
                found.setdefault(f"{each.severity}: {{}}: {printable(each.sentence)}", [])
                found[f"{each.severity}: {{}}: {printable(each.sentence)}"].append(where)
    return [line.replace("{}", _few(rows), 1) for line, rows in found.items()]


def _few(rows: list[str]) -> str:
    return rows[0] if len(rows) == 1 else f"{rows[0]} and {len(rows) - 1} more"
