"""An evaluation as lines: the recipe compared with the unchanged model."""

from __future__ import annotations

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import bits_per_weight, figure, ppl, share
from engine.report.tables.layout import escaped, markdown, named, paragraphs
from engine.report.tables.parts import about, fallback_lines, protocol_lines, spent
from engine.report.tables.texts import by_position, by_text
from engine.report.wording import size


def eval_text(document: s.EvalDocument, *, positions: bool = False) -> str:
    """An evaluation: the recipe compared with the unchanged model.

    Args:
        document: of it.
        positions: whether to print figures by position, where there are some.
    """
    texts = [] if isinstance(document.texts, UnsetType) else document.texts
    return paragraphs(
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        named(_lines(document)),
        by_text(texts) if len(texts) > 1 else "",
        by_position(texts) if positions else "",
        fallback_lines(document.fallbacks),
        spent(document.timings, document.resumed),
    )


def eval_markdown(document: s.EvalDocument, *, positions: bool = False) -> str:
    """The same as Markdown; see `eval_text`."""
    texts = [] if isinstance(document.texts, UnsetType) else document.texts
    name, recipe = printable(document.model.name), printable(document.recipe.name)
    return paragraphs(
        f"# {escaped(name)}: {escaped(recipe)}",
        escaped(protocol_lines(document.protocol, document.baseline)),
        markdown(["", "recipe"], _lines(document)[1:]),
        by_text(texts, as_markdown=True) if len(texts) > 1 else "",
        by_position(texts, as_markdown=True) if positions else "",
        escaped(fallback_lines(document.fallbacks)),
    )


def _lines(document: s.EvalDocument) -> list[list[str]]:
    """Names and values."""
    recipe = document.recipe
    low, high = (ppl(each) for each in recipe.ppl_ci95)
    lines = [
        ["recipe", recipe.name],
        ["PPL", f"{ppl(recipe.ppl)}  (95%: {low} … {high})"],
        ["NLL", f"{figure(recipe.nll, 4)} nats per token"],
        ["ΔNLL", f"{figure(recipe.dnll, 4)} ± {figure(recipe.dnll_se, 4)} (standard error)"],
        ["KL", f"{figure(recipe.kl, 5)} ± {figure(recipe.kl_se, 5)} nats per token"],
        ["top-1", f"{share(recipe.top1_agreement)} of positions agree"],
    ]
    if not isinstance(recipe.bits_per_weight, UnsetType):
        lines.append(["bits", bits_per_weight(recipe.bits_per_weight, recipe.bits_all)])
    if not isinstance(recipe.bytes, UnsetType):
        lines.append(["size", size(recipe.bytes)])
    return lines
