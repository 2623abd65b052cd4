"""Parts of documents about a recipe on several texts."""

from __future__ import annotations

from engine import protocol as p
from engine.report import schema as s
from engine.report.json import finite


def text_part(score: p.ScoreOnText) -> s.TextPart:
    """A recipe on one text."""
    return s.TextPart(
        name=score.name,
        text=score.text,
        text_sha256=score.sha256,
        tokens=score.tokens,
        windows=score.windows,
        ppl_reference=finite(score.ppl_reference),
        ppl=finite(score.ppl),
        ppl_ci95=(finite(score.ppl_low), finite(score.ppl_high)),
        dnll=finite(score.dnll),
        dnll_se=finite(score.dnll_se),
        kl=finite(score.kl),
        kl_se=finite(score.kl_se),
        top1_agreement=finite(score.top1),
        positions=[_positions(each) for each in score.positions],
    )


def _positions(score: p.ScoreAtPositions) -> s.PositionsPart:
    return s.PositionsPart(
        first=score.first,
        last=score.last,
        ppl_reference=finite(score.ppl_reference),
        ppl=finite(score.ppl),
        dnll=finite(score.dnll),
        dnll_se=finite(score.dnll_se),
        kl=finite(score.kl),
        kl_se=finite(score.kl_se),
    )
