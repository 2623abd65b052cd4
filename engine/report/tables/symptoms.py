"""Symptoms as text: rates, then prompts whose texts differ, one text below the other."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine.diagnosis.detectors import WORDS
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import NOT_KNOWN, figure, share
from engine.report.tables.divergence import divergences
from engine.report.tables.layout import escaped, markdown, paragraphs, table
from engine.report.tables.parts import about, fallback_lines, protocol_lines, spent
from engine.report.tables.tasks import tasks_markdown, tasks_text
from engine.report.wording import counted

SHOWN = 12
"""Prompts whose texts are printed: those with symptoms first."""
WORST = 10
"""Layers given back that are listed."""
RESTORED = ["given back", "KL·10³", "±", "of the whole"]
CHARACTERS = 300
"""Of a text that is printed."""
DIFFER = 6
"""Channels, layers and heads that are listed."""
CONTRAST = ["where", "failing", "others", "chance", "of the error"]
HEADINGS = ["symptom", "reference", "recipe", "95%", "added", "chance"]


def symptoms_text(document: s.SymptomsDocument) -> str:
    """Rates of symptoms, then both texts of the prompts that have one."""
    return paragraphs(
        about(document.model),
        f"recipe {printable(document.recipe)}{_how(document)}",
        fallback_lines(document.fallbacks),
        _summary(document) if document.prompts else "",
        table(HEADINGS, rate_rows(document.rates), {0}) if document.rates else "",
        "\n".join(cause_lines(document.causes)),
        table(RESTORED, restored_rows(document.restored), {0}) if document.restored else "",
        contrast_title(document.contrast),
        table(CONTRAST, rows, {0}) if (rows := contrast_rows(document.contrast)) else "",
        *(prompt_text(each) for each in _chosen(document)),
        _more(document),
        *tasks_text(document.tasks),
        _evaluated_on(document),
        divergences({document.recipe: document.divergence}),
        spent(document.timings, document.resumed),
    )


def symptoms_markdown(document: s.SymptomsDocument) -> str:
    """The same as Markdown."""
    return paragraphs(
        f"# {escaped(printable(document.model.name))}: symptoms",
        escaped(f"recipe {printable(document.recipe)}{_how(document)}"),
        escaped(_summary(document)) if document.prompts else "",
        markdown(HEADINGS, rate_rows(document.rates)) if document.rates else "",
        "\n".join(f"- {escaped(each)}" for each in cause_lines(document.causes)),
        markdown(RESTORED, restored_rows(document.restored)) if document.restored else "",
        escaped(contrast_title(document.contrast)),
        markdown(CONTRAST, rows) if (rows := contrast_rows(document.contrast)) else "",
        *(_prompt_markdown(each) for each in _chosen(document)),
        escaped(_more(document)),
        *tasks_markdown(document.tasks),
        escaped(_evaluated_on(document)),
        divergences({document.recipe: document.divergence}, as_markdown=True),
    )


def _how(document: s.SymptomsDocument) -> str:
    if not document.prompts:
        return ""
    how = document.sampling
    drawn = f"temperature {figure(how.temperature, 2)}, seed {how.seed}"
    if how.temperature and how.top_p != 1:
        drawn += f", top-p {figure(how.top_p, 2)}"
    return (
        f"; {counted(len(document.prompts), 'prompt')}, {how.new_tokens} new tokens, "
        + (drawn if how.temperature else "greedy")
        + (", chat template" if how.chat else "")
    )


def _summary(document: s.SymptomsDocument) -> str:
    prompts = document.prompts
    same = sum(each.first_difference is None for each in prompts)
    said = f"{same} of {len(prompts)} texts are the same"
    if not document.alarms:
        return f"{said}; the recipe shows no symptom that the reference does not"
    shows = "shows a symptom that the reference's does not"
    if document.alarms > 1:
        shows = "show a symptom that the reference's do not"
    return f"{said}; {document.alarms} {shows}"


def _evaluated_on(document: s.SymptomsDocument) -> str:
    """The text and windows of the tables of divergence, which no other figure here is about."""
    if isinstance(document.divergence, UnsetType) or isinstance(document.protocol, UnsetType):
        return ""
    return protocol_lines(document.protocol, UNSET)


def rate_rows(rates: Sequence[s.SymptomRate]) -> list[list[str]]:
    """Rates, under `HEADINGS`."""
    return [
        [
            WORDS.get(each.symptom, each.symptom),
            share(each.reference / each.prompts),
            share(each.recipe / each.prompts),
            " … ".join(share(end) for end in each.recipe_ci95),
            str(each.added),
            "" if each.chance is None else figure(each.chance, 3),
        ]
        for each in rates
    ]


def cause_lines(causes: Sequence[s.CausePart]) -> list[str]:
    """Causes, each with what helps."""
    lines = []
    for each in causes:
        lines.append(f"{WORDS.get(each.symptom, each.symptom)}: {printable(each.sentence)}")
        lines += [
            f"  {'tried, cures it' if fix.tried else 'to try'}: {printable(fix.sentence)}"
            for fix in each.fixes
        ]
    return lines


def restored_rows(restored: Sequence[s.RestoredLayer]) -> list[list[str]]:
    """What was given back, under `RESTORED`."""

    def thousandth(value: s.Number) -> str:
        return figure(None if value is None else 1000 * value, 2)

    return [
        [
            each.name,
            thousandth(each.kl),
            thousandth(each.kl_se) if each.texts > 1 else NOT_KNOWN,
            share(each.kl / each.whole) if each.kl is not None and each.whole else "",
        ]
        for each in restored[:WORST]
    ]


def contrast_title(found: s.ContrastPart | UnsetType) -> str:
    """How many prompts fail, against how many; empty where they were not compared."""
    if isinstance(found, UnsetType):
        return ""
    said = f"{counted(found.failing, 'prompt')} that {'fail' if found.failing > 1 else 'fails'}"
    said += f", against {found.healthy} that {'do' if found.healthy != 1 else 'does'} not"
    if not found.healthy:
        said += ": give prompts that do not fail as well, to see what is different"
    if not isinstance(found.reference_fails, UnsetType):
        said += f"; {left_out(found.reference_fails)}"
    return said if isinstance(found.why, UnsetType) else f"{said}; {printable(found.why)}"


def left_out(reference_fails: int) -> str:
    """That prompts were not compared since the reference fails on them."""
    return f"not compared: {counted(reference_fails, 'prompt')} on which the reference fails too"


def contrast_rows(found: s.ContrastPart | UnsetType) -> list[list[str]]:
    """Channels by their mean size, layers by their output error, heads by KL; under `CONTRAST`."""
    if isinstance(found, UnsetType):
        return []

    def row(where: str, each: s.ContrastedHeadPart | s.ContrastedLayerPart, unit: str) -> list[str]:
        values = [
            NOT_KNOWN if value is None else share(value) if unit == "%" else figure(value, 3)
            for value in (each.failing, each.healthy)
        ]
        return [where, *values, _chance(each.chance), ""]

    rows = [
        [
            f"|x| {printable(each.layer)} {each.channel}",
            figure(each.failing, 3),
            figure(each.healthy, 3),
            _chance(each.chance),
            NOT_KNOWN if each.share is None else share(each.share),
        ]
        for each in found.channels[:DIFFER]
    ]
    rows += [row(f"error of {printable(each.layer)}", each, "%") for each in found.layers[:DIFFER]]
    rows += [
        row(f"KL of head {each.head} of block {each.block}", each, "")
        for each in found.heads[:DIFFER]
    ]
    return rows


def _chance(value: s.Number) -> str:
    return NOT_KNOWN if value is None else figure(value, 3)


def _chosen(document: s.SymptomsDocument) -> list[s.PromptPart]:
    differing = [each for each in document.prompts if each.first_difference is not None]
    return sorted(differing, key=lambda each: not each.findings)[:SHOWN]


def _more(document: s.SymptomsDocument) -> str:
    differing = sum(each.first_difference is not None for each in document.prompts)
    left = differing - SHOWN
    return f"… and {left} more that differ; --json has all" if left > 0 else ""


def prompt_text(part: s.PromptPart) -> str:
    """A prompt, its symptoms, both texts and where they part."""
    lines = [f"{printable(part.id)}: {_cut(part.prompt)}"]
    if part.findings:
        lines.append("  symptoms   " + ", ".join(WORDS.get(each, each) for each in part.findings))
    lines.append(f"  reference  {_cut(part.reference)}")
    lines.append(f"  recipe     {_cut(part.recipe)}")
    if not isinstance(part.difference, UnsetType):
        lines.append(f"  token {part.difference.token}   {_difference(part.difference)}")
    return "\n".join(lines)


def _prompt_markdown(part: s.PromptPart) -> str:
    lines = [f"## {escaped(printable(part.id))}", ""]
    if part.findings:
        lines += [", ".join(WORDS.get(each, each) for each in part.findings), ""]
    lines += [
        f"- prompt: {escaped(_cut(part.prompt))}",
        f"- reference: {escaped(_cut(part.reference))}",
        f"- recipe: {escaped(_cut(part.recipe))}",
    ]
    if not isinstance(part.difference, UnsetType):
        said = f"token {part.difference.token}: {_difference(part.difference)}"
        lines.append(f"- {escaped(said)}")
    return "\n".join(lines)


def _difference(part: s.DifferencePart) -> str:
    def said(top: list[s.ChoicePart]) -> str:
        return ", ".join(f"{_quoted(each.token)} {share(each.p)}" for each in top[:3])

    return f"reference {said(part.reference_top)}; recipe {said(part.recipe_top)}"


def _quoted(token: str) -> str:
    return f"'{printable(token)}'"


def _cut(text: str) -> str:
    """A text in one line, not longer than is printed."""
    line = printable(text)
    return line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"
