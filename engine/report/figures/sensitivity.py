"""Figures of a layer's effect: measured, estimated from gradients, and their uncertainty."""

from __future__ import annotations

from typing import Any

from engine.protocol import Sensitivity
from engine.report.figures.declaration import (
    EFFECTS,
    Column,
    CsvName,
    Figure,
    FilterWord,
    JsonPath,
    PaneLine,
    Value,
)
from engine.report.figures.effects import (
    below_floor,
    corrected_kl,
    delta_ppl,
    delta_ppl_bound,
    kl_reader,
)
from engine.report.figures.quantity import COUNT, NATS, PERPLEXITY, SHARE, WORD, YES_NO
from engine.report.figures.reading import of_effect, of_estimate, of_measured


def _json(*paths: str) -> tuple[JsonPath, ...]:
    return tuple(JsonPath("sweep", path) for path in paths)


def _source(effect: Any, session: Any) -> Value:
    return "measured" if isinstance(effect, Sensitivity) else "estimated"


WHICH: tuple[Figure, ...] = (
    Figure(
        id="format", title="format", help="the format whose effect it is",
        quantity=WORD, read=of_effect(lambda effect, _: effect.format),
        csv=CsvName("format", EFFECTS),
    ),
    Figure(
        id="direction", title="direction", help="degrade: quantised alone; restore: kept alone",
        quantity=WORD, read=of_effect(lambda effect, _: effect.direction),
        csv=CsvName("direction", EFFECTS),
    ),
    Figure(
        id="source", title="source", help="whether the effect was measured or estimated",
        quantity=WORD, read=of_effect(_source), csv=CsvName("source", EFFECTS),
    ),
    Figure(
        id="tokens", title="tokens", help="targets behind the figures",
        quantity=COUNT, read=of_effect(lambda effect, _: effect.tokens),
        pane=PaneLine("effect", "tok", 0, width=6, quiet=True),
        json=_json("measured.tokens"), csv=CsvName("tokens", EFFECTS),
    ),
)  # fmt: skip

KL: tuple[Figure, ...] = (
    Figure(
        id="kl", title="KL", help="KL, nats per token; measured, else estimated",
        quantity=NATS,
        read=of_effect(lambda effect, _: effect.kl, lambda at: kl_reader(at.session, at.key)),
        column=Column(
            "KL", 6, 0, left=True, then_by="error",
            legend=(
                "KL from the unchanged model, that layer alone quantised:",
                "thousandths of a nat per token; restore: how much less of it",
                "there is with that layer alone kept, the others quantised",
            ),
        ),
        filter=FilterWord(">1e-3", 0, common=True),
        json=_json("measured.kl"), csv=CsvName("kl_nats_per_token"),
    ),
    Figure(
        id="kl_se", title="standard error of KL", help="standard error of KL over windows",
        quantity=NATS, read=of_effect(lambda effect, _: effect.kl_se),
        json=_json("measured.kl_se"), csv=CsvName("kl_se_nats_per_token", ("kl",)),
    ),
    Figure(
        id="below_floor", title="below the floor",
        help="yes where the measured KL is less than what rounding alone may measure",
        quantity=YES_NO,
        read=of_measured(lambda effect, session: below_floor(session, effect) or None),
        json=_json("measured.below_floor"), csv=CsvName("below_floor", ("kl",)),
    ),
    Figure(
        id="estimated_kl", title="estimated KL", help="KL estimated from gradients, uncorrected",
        quantity=NATS, read=of_estimate(lambda estimate, _: estimate.kl),
        json=_json("estimate.kl"), csv=CsvName("estimated_kl_nats_per_token", ("kl",)),
    ),
    Figure(
        id="estimated_kl_se", title="standard error of the estimated KL",
        help="standard error of the estimated KL over windows",
        quantity=NATS, read=of_estimate(lambda estimate, _: estimate.kl_se),
        json=_json("estimate.kl_se"), csv=CsvName("estimated_kl_se_nats_per_token", ("kl",)),
    ),
    Figure(
        id="corrected_kl", title="corrected KL",
        help="KL expected by the fit of measured to estimated KL of other layers",
        quantity=NATS,
        read=of_estimate(lambda estimate, session: corrected_kl(session, estimate)),
        json=_json("estimate.corrected_kl"), csv=CsvName("corrected_kl_nats_per_token", ("kl",)),
    ),
    Figure(
        id="doubt", title="doubt", help="why the estimate may be wrong",
        quantity=WORD, read=of_estimate(lambda estimate, _: estimate.doubt or None),
        json=_json("estimate.doubt"), csv=CsvName("doubt", ("kl",)),
    ),
    Figure(
        id="estimated_tokens", title="tokens of the estimate", help="targets behind the estimate",
        quantity=COUNT, read=of_estimate(lambda estimate, _: estimate.tokens),
        json=_json("estimate.tokens"),
    ),
    Figure(
        id="draws", title="draws", help="draws of labels behind the estimate",
        quantity=COUNT, read=of_estimate(lambda estimate, _: estimate.draws),
        json=_json("estimate.draws"),
    ),
)  # fmt: skip

NLL: tuple[Figure, ...] = (
    Figure(
        id="dnll", title="change of NLL",
        help="change of NLL, nats per token; measured, else estimated",
        quantity=NATS, read=of_effect(lambda effect, _: effect.dnll),
        column=Column("NLL", 9, 10), filter=FilterWord(">1e-3", 2),
        json=_json("measured.dnll"), csv=CsvName("dnll_nats_per_token"),
    ),
    Figure(
        id="dnll_se", title="standard error of the change of NLL",
        help="standard error of the change of NLL over windows",
        quantity=NATS, read=of_effect(lambda effect, _: effect.dnll_se),
        json=_json("measured.dnll_se"), csv=CsvName("dnll_se_nats_per_token", ("dnll",)),
    ),
    Figure(
        id="estimated_dnll", title="estimated change of NLL",
        help="change of NLL estimated from gradients",
        quantity=NATS, read=of_estimate(lambda estimate, _: estimate.dnll),
        json=_json("estimate.dnll"), csv=CsvName("estimated_dnll_nats_per_token", ("dnll",)),
    ),
    Figure(
        id="estimated_dnll_se", title="standard error of the estimated change of NLL",
        help="standard error of the estimated change of NLL over windows",
        quantity=NATS, read=of_estimate(lambda estimate, _: estimate.dnll_se),
        json=_json("estimate.dnll_se"), csv=CsvName("estimated_dnll_se_nats_per_token", ("dnll",)),
    ),
)  # fmt: skip

SCORES: tuple[Figure, ...] = (
    Figure(
        id="dppl", title="change of perplexity",
        help="change of perplexity; measured, else estimated",
        quantity=PERPLEXITY, read=of_effect(lambda effect, session: delta_ppl(session, effect)),
        column=Column(
            "PPL", 13, 1, left=True,
            legend=("change of perplexity, {plus_minus} half of its 95% interval",),
        ),
        filter=FilterWord(">.05", 1, common=True),
        json=_json("measured.dppl"), csv=CsvName("dppl"),
    ),
    Figure(
        id="dppl_low", title="lower bound of the change of perplexity",
        help="lower end of its 95% interval", quantity=PERPLEXITY,
        read=of_effect(lambda effect, session: delta_ppl_bound(session, effect, -1)),
        json=_json("measured.dppl_ci95[0]"), csv=CsvName("dppl_low", ("dppl",)),
    ),
    Figure(
        id="dppl_high", title="upper bound of the change of perplexity",
        help="upper end of its 95% interval", quantity=PERPLEXITY,
        read=of_effect(lambda effect, session: delta_ppl_bound(session, effect, 1)),
        json=_json("measured.dppl_ci95[1]"), csv=CsvName("dppl_high", ("dppl",)),
    ),
    Figure(
        id="top1", title="agreement of first choices",
        help="share of tokens with the same first choice",
        quantity=SHARE, read=of_measured(lambda effect, _: effect.top1),
        column=Column("top-1", 6, 7, falling=False), filter=FilterWord("<99%", 8),
        pane=PaneLine("effect", "top-1", 1, width=6),
        json=_json("measured.top1_agreement"), csv=CsvName("top1_agreement"),
    ),
)  # fmt: skip
