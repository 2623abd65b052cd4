"""A report as Markdown, and the facts and rows that its page shows too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UnsetType

from engine.report import schema as s
from engine.report import wording as n
from engine.report.characters import printable
from engine.report.tables.asked import asked_markdown
from engine.report.tables.calibration import legend, matrix, warning_lines
from engine.report.tables.cells import NOT_KNOWN, share
from engine.report.tables.layout import escaped, markdown, paragraphs
from engine.report.tables.parts import fallback_sentences

WORST = 12
"""Layers that are listed with their effects."""
NO_VERDICT = "No verdict: the effects of some layers are not known."


class Row(NamedTuple):
    """What one layer costs, in words."""

    name: str
    holds: str
    kl: float | None
    kl_text: str
    dppl_text: str
    error: str
    """Relative weight error in the format of the report."""
    advice: str
    """The smallest format that keeps its share of the damage small."""

    @classmethod
    def of(cls, document: s.ReportDocument, layer: s.ReportLayer) -> Row:
        """Of a layer, and its effect in the format of the report."""
        effect = layer.effects.get(document.format)
        known = layer.errors.get(document.format)
        error = NOT_KNOWN if known is None else share(known)
        if effect is None or effect.kl is None:
            return cls(layer.name, layer.holds, None, NOT_KNOWN, NOT_KNOWN, error, NOT_KNOWN)
        mark = "" if effect.measured else "≈"
        kl = f"{mark}{n.short(1000 * effect.kl)}"
        if not isinstance(effect.kl_se, UnsetType):
            kl += _half(document, effect.kl_se)
        change = effect.dppl
        dppl = NOT_KNOWN
        if not isinstance(change, UnsetType) and change is not None:
            dppl = f"{mark}{'+' if change >= 0 else '-'}{n.short(abs(change), small=3)}"
        advice = NOT_KNOWN if isinstance(layer.advice, UnsetType) else layer.advice.format
        return cls(layer.name, layer.holds, effect.kl, kl, dppl, error, advice)


def _half(document: s.ReportDocument, kl_se: float | None) -> str:
    """Half the interval of a KL, times 1000; nothing while it is not known."""
    if kl_se is None or document.interval_factor is None:
        return ""
    return f" ± {n.short(1000 * document.interval_factor * kl_se)}"


def report_markdown(document: s.ReportDocument) -> str:
    """The report as Markdown, in the order of the page."""
    name = document.model.name.rstrip("/").rsplit("/", 1)[-1]
    findings = [
        f"- **{each.severity}** {_code(each)}{escaped(printable(each.sentence))}"
        + (f" — {escaped(printable(fix))}" if (fix := finding_fix(each)) else "")
        for each in document.findings
    ]
    verdict = document.verdict
    worst = [
        (f"`{_tick(row.name)}`", row.holds, row.kl_text, row.dppl_text, row.error, row.advice)
        for row in worst_rows(document)
    ]
    doubts = [escaped(printable(warning)) for warning in document.warnings]
    doubts += [escaped(each) for each in fallback_sentences(document.fallbacks)]
    return paragraphs(
        f"# {escaped(printable(name))}",
        markdown(("", ""), facts(document)),
        "## Verdict",
        NO_VERDICT if isinstance(verdict, UnsetType) else escaped(printable(verdict.sentence)),
        "## Findings",
        "\n".join(findings) or "None.",
        f"## Layers that cost most in {escaped(document.format)}" if worst else "",
        markdown(("layer", "holds", "KL·10³", "ΔPPL", "weight error", "advice"), worst, code=True)
        if worst
        else "",
        "## Other formats tried" if (fixes := fix_rows(document)) else "",
        markdown(FIXES, fixes) if fixes else "",
        "## Recipe",
        markdown(("format", "layers", "weights", "size"), formats_used(document)),
        "## Recipes tried" if document.tried else "",
        markdown(("recipe", "bits", "size", "PPL", "KL·10³", ""), tried_rows(document))
        if document.tried
        else "",
        "## Finished checkpoints" if document.compared else "",
        markdown(FINISHED, finished_rows(document.compared)) if document.compared else "",
        "\n".join(
            f"- {escaped(printable(each.name))}: {escaped(printable(found.sentence))}"
            for each in document.compared
            for found in each.findings
        ),
        *asked_markdown(document),
        *_calibration(document),
        "## Doubts" if doubts else "",
        "\n".join(f"- {each}" for each in doubts),
        "## Protocol",
        markdown(("", ""), protocol_facts(document)),
        "## Reproduce" if document.commands else "",
        "\n".join(f"    {printable(command)}" for command in document.commands.values()),
    )


def facts(document: s.ReportDocument) -> list[tuple[str, str]]:
    """The most important figures, by name."""
    recipe, baseline = document.recipe, document.baseline
    found = [
        ("parameters", n.count(document.model.params)),
        ("as stored", n.size(recipe.stored_bytes)),
    ]
    if not isinstance(baseline, UnsetType) and baseline.ppl is not None:
        found.append(("PPL unchanged", n.perplexity(baseline.ppl)))
    if recipe.changed:
        found.append(("recipe", n.size(recipe.bytes)))
        found.append(("bits per weight", n.short(recipe.bits_per_weight or 0.0)))
    score = recipe.measured
    if not isinstance(score, UnsetType) and recipe.changed:
        if score.ppl is not None:
            low, high = score.ppl_ci95
            half = n.margin((high - low) / 2) if high is not None and low is not None else "?"
            found.append(("PPL of the recipe", f"{n.perplexity(score.ppl)} ± {half}"))
        if score.kl is not None:
            half = _half(document, score.kl_se)
            found.append(("KL·10³", f"{n.short(1000 * score.kl)}{half}"))
        if score.top1_agreement is not None:
            found.append(("top-1 agreement", share(score.top1_agreement)))
    return found


def finding_fix(found: s.FindingPart) -> str:
    """What helps, and how much; empty where nothing known does."""
    fix = found.fix
    if isinstance(fix, UnsetType):
        return ""
    mark = "" if fix.measured else "≈"
    won = f"wins back {mark}{share(fix.recovered)}"
    return f"{fix.format} {won} {n.bits_more(fix.bits or 0.0)}"


def worst_rows(document: s.ReportDocument) -> list[Row]:
    """The layers that cost most in the format of the report."""
    rows = [Row.of(document, layer) for layer in document.layers]
    known = [row for row in rows if row.kl is not None]
    return sorted(known, key=lambda row: -(row.kl or 0.0))[:WORST]


def formats_used(document: s.ReportDocument) -> list[tuple[str, str, str, str]]:
    """Formats that layers hold: how many layers, their weights, and their size."""
    layers, weights, sizes = Counter[str](), Counter[str](), Counter[str]()
    for layer in document.layers:
        many = 1
        for size in layer.shape:
            many *= size
        layers[layer.holds] += 1
        weights[layer.holds] += many
        sizes[layer.holds] += layer.bytes
    return [
        (format, f"{count:,}", n.count(weights[format]), n.size(sizes[format]))
        for format, count in layers.most_common()
    ]


def tried_rows(document: s.ReportDocument) -> list[tuple[str, str, str, str, str, str]]:
    """Recipes tried with their scores, and whether they are on the frontier."""
    found = []
    for each in document.tried:
        score = each.measured
        ppl = kl = NOT_KNOWN
        if not isinstance(score, UnsetType):
            ppl = NOT_KNOWN if score.ppl is None else n.perplexity(score.ppl)
            kl = NOT_KNOWN if score.kl is None else n.short(1000 * score.kl)
        marks = ["current"] * each.current + ["on the frontier"] * each.frontier
        bits = NOT_KNOWN if each.bits_per_weight is None else f"{each.bits_per_weight:.2f}"
        found.append((each.name, bits, n.size(each.bytes), ppl, kl, ", ".join(marks)))
    return found


FIXES = ("layer", "format", "KL·10³", "output error", "bits", "", "kernels")


def fix_rows(document: s.ReportDocument) -> list[tuple[str, ...]]:
    """Formats tried on layers whose KL was measured, or that help most, as far as known."""
    found: list[tuple[str, ...]] = []
    fixes = document.fixes
    for layer in () if isinstance(fixes, UnsetType) else fixes:
        name = layer.name
        for each in layer.fixes:
            kl, mark = each.kl_measured, ""
            if isinstance(kl, UnsetType):
                kl, mark = each.kl_estimated, "≈"
            if each.refused or (mark and not each.verdict.startswith("best")):
                continue
            error = each.output_error
            shown = NOT_KNOWN if isinstance(kl, UnsetType) else mark + n.short(1000 * (kl or 0.0))
            found.append(
                (
                    name,
                    each.format,
                    shown,
                    NOT_KNOWN if isinstance(error, UnsetType) else share(error),
                    NOT_KNOWN if each.bits is None else f"{each.bits:.2f}",
                    each.verdict,
                    " ".join(each.kernels) or "none",
                )
            )
            name = ""
    return found


FINISHED = ("checkpoint", "stored as", "bits", "size", "KL·10³", "PPL", "top-1")


def finished_rows(compared: Sequence[s.ArtefactPart]) -> list[tuple[str, ...]]:
    """Finished checkpoints with their sizes and scores."""
    found: list[tuple[str, ...]] = []
    for each in compared:
        bits = NOT_KNOWN if each.bits_per_weight is None else f"{each.bits_per_weight:.2f}"
        kl = NOT_KNOWN if isinstance(each.kl, UnsetType) or each.kl is None else each.kl
        ppl = NOT_KNOWN if isinstance(each.ppl, UnsetType) or each.ppl is None else each.ppl
        top1 = each.top1_agreement
        same = NOT_KNOWN if isinstance(top1, UnsetType) or top1 is None else f"{top1:.1%}"
        found.append(
            (
                each.name,
                each.layout,
                bits,
                n.size(each.bytes),
                kl if isinstance(kl, str) else n.short(1000 * kl),
                ppl if isinstance(ppl, str) else n.perplexity(ppl),
                same,
            )
        )
    return found


def protocol_facts(document: s.ReportDocument) -> list[tuple[str, str]]:
    """How it was measured."""
    found = [("checkpoint", document.model.name), ("fingerprint", document.model.fingerprint)]
    how = document.protocol
    if not isinstance(how, UnsetType):
        found += [
            ("text", f"{how.text_read}, {how.tokens:,} tokens, SHA-256 {how.text_sha256[:16]}"),
            ("windows", f"{how.windows} of {how.seq_len} tokens, {how.stride} targets of each"),
            ("arithmetic", f"{how.dtype} on {how.device}, seed {how.seed}"),
        ]
    if isinstance(name := document.calibration.text, str):
        found.append(("calibration", name))
    control = document.control
    if not isinstance(control, UnsetType):
        kl = 0.0 if control.max_abs_kl is None else control.max_abs_kl
        found.append(("control", f"a layer swapped for itself: KL {f'{kl:.1e}' if kl else 0}"))
    for format, agreed in document.agreement.items():
        if agreed.rank_kl is not None:
            said = f"rank correlation {n.significant(agreed.rank_kl)} over {agreed.layers} layers"
            found.append((f"estimates, {format}", said))
    found.append(("versions", ", ".join(f"{k} {v}" for k, v in sorted(document.versions.items()))))
    return found


def _code(found: s.FindingPart) -> str:
    return "" if isinstance(found.layer, UnsetType) else f"`{_tick(found.layer)}`: "


def _tick(name: str) -> str:
    """A name between back quotes, which none of its own can end; nor a table's cell."""
    return printable(name).replace("`", "'").replace("|", "¦")


def _calibration(document: s.ReportDocument) -> list[str]:
    """Calibration sets that were compared, a table for each method."""
    if isinstance(document.calibration_sets, UnsetType):
        return []
    found = []
    for each in document.calibration_sets:
        headings, rows = matrix(each.texts, each.sets)
        found += [
            f"## Calibration sets for {escaped(each.method)}",
            markdown([escaped(each) for each in headings], rows),
            escaped(legend(each.sets)),
            "\n".join(f"- {escaped(line)}" for line in warning_lines(each.sets)),
        ]
    return found
