"""An evaluation as lines: the recipe compared with the unchanged model."""

from __future__ import annotations

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.tables.cells import bits_per_weight, figure, ppl, share
from engine.report.tables.layout import named, paragraphs
from engine.report.tables.parts import about, fallback_lines, protocol_lines, spent
from engine.report.wording import size


def eval_text(document: s.EvalDocument) -> str:
    """An evaluation: the recipe compared with the unchanged model."""
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
    return paragraphs(
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        named(lines),
        fallback_lines(document.fallbacks),
        spent(document.timings, document.resumed),
    )
