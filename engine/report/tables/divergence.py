"""The tables of llama.cpp's KL divergence, with several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UnsetType

from engine.protocol.divergence import DELTA_P_QUANTILES, KLD_QUANTILES
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.layout import escaped, markdown, table

NAMES = {"mean": "Mean", "max": "Maximum", "median": "Median", "min": "Minimum"}
"""What llama.cpp calls a figure in front of "KLD" and "Δp"."""


def divergences(
    known: Mapping[str, s.DivergencePart | UnsetType],
    *,
    as_markdown: bool = False,
) -> str:
    """The figures that ``llama-perplexity --kl-divergence`` prints, by its names; a column a model.

    Args:
        known: by name of the model; those without are left out, and nothing is drawn without any.
        as_markdown: whether to write Markdown.
    """
    parts = {name: part for name, part in known.items() if not isinstance(part, UnsetType)}
    if not parts:
        return ""
    headings, rows = ["", *map(printable, parts)], divergence_rows(list(parts.values()))
    if as_markdown:
        return markdown([escaped(each) for each in headings], rows)
    return table(headings, rows, {0})


def divergence_rows(some: Sequence[s.DivergencePart]) -> list[list[str]]:
    """Rows of names and figures, a column for each model."""
    return [
        ["Mean PPL(Q)", *(_with(each.ppl, each.ppl_se, 4) for each in some)],
        ["Mean PPL(base)", *(_with(each.ppl_base, each.ppl_base_se, 4) for each in some)],
        ["Mean ln(PPL(Q)/PPL(base))", *(_with(x.ln_ratio, x.ln_ratio_se, 6) for x in some)],
        *_quantiles("KLD", [each.kld for each in some], KLD_QUANTILES, 1.0, 6),
        *_quantiles("Δp", [each.delta_p for each in some], DELTA_P_QUANTILES, 100.0, 3),
        ["RMS Δp", *(_of(each.delta_p, "rms", 100.0, 3) for each in some)],
        ["Same top p", *(_with(x.same_top, x.same_top_se, 3, 100.0) for x in some)],
    ]


def _quantiles(
    kind: str,
    tables: list[dict[str, s.Number]],
    named: Mapping[str, float],
    unit: float,
    digits: int,
) -> list[list[str]]:
    return [
        [f"{NAMES.get(name, name)} {kind}", *(_of(each, name, unit, digits) for each in tables)]
        for name in ("mean", *named)
    ]


def _of(table: Mapping[str, s.Number], name: str, unit: float, digits: int) -> str:
    return _with(table.get(name), table.get(f"{name}_se"), digits, unit)


def _with(value: s.Number, error: s.Number, digits: int, unit: float = 1.0) -> str:
    if value is None:
        return ""
    said = f"{unit * value:.{digits}f}"
    said += "" if error is None else f" ± {unit * error:.{digits}f}"
    return said + ("%" if unit != 1.0 else "")
