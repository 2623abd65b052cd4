"""Completions of the filter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from engine.report.figures.registry import filter_figures
from engine.session import Session
from qtui.views.filter.words import STATES, TERM, WORDS

MAX_OFFERED = 50


def complete_filter(text: str, session: Session) -> list[tuple[str, str]]:
    """What the last term could become.

    Returns:
        The whole text with its last term completed, and what that means; at most `MAX_OFFERED`.
    """
    typed = re.search(r"\S*$", text)
    last = typed.group() if typed else ""
    head = text[: len(text) - len(last)]
    negation = last[:1] if last[:1] in ("-", "!") else ""
    offers = _offers(last[len(negation) :], session)
    return [
        (head + negation + offered, says)
        for offered, says in offers
        if head + negation + offered != text
    ][:MAX_OFFERED]


def _offers(term: str, session: Session) -> list[tuple[str, str]]:
    layers = session.layers
    parts = TERM.fullmatch(term)
    if parts is None:
        low = term.lower()
        offers = [(f"{name}:", says) for name, says in WORDS.items() if name.startswith(low)]
        figures = filter_figures().items()
        offers += [(f"{name}>", x.help) for name, x in figures if name.startswith(low)]
        if term:
            kinds = [(f"kind:{kind}", says) for kind, says in _by_frequency(layers.kinds)]
            offers += [offer for offer in kinds if low in offer[0].removeprefix("kind:").lower()]
            offers += [(f"is:{state}", x) for state, x in STATES.items() if state.startswith(low)]
        return offers
    name, sign, value = parts.group(1).lower(), parts.group(2), parts.group(3).lower()
    if (figure := filter_figures().get(name)) is not None and figure.filter is not None:
        example = figure.filter.example
        examples = [f"{name}{example}"]
        signs = ["<", "<=", ">", ">="]
        signs = [other for other in signs if other.startswith(sign) and other != sign]
        if value or sign == ":":
            return []  # a number is typed, and never follows a colon
        if not example.startswith(sign):
            examples = [name + sign + example.lstrip("<>=")]
        return [(each, figure.help) for each in examples] + [
            (name + other, figure.help) for other in signs
        ]
    if sign not in ":=":
        return []  # words are not compared; a block's number is typed
    if name == "is":
        known = list(STATES.items())
    elif name == "kind":
        known = _by_frequency(layers.kinds)
    elif name == "fmt":
        known = [*_by_frequency(layers.holds), ("kept", "as stored")]
    elif name == "role":
        known = _by_frequency(layers.roles)
    elif name == "block":
        blocks = Counter(block for block in layers.blocks if block >= 0)
        known = [(str(block), _layers(number)) for block, number in sorted(blocks.items())]
    else:
        known = []
    return [(f"{name}{sign}{word}", x) for word, x in known if word.lower().startswith(value)]


def _by_frequency(words: Iterable[str]) -> list[tuple[str, str]]:
    """Words without blanks, the most frequent first, with how many layers each is of."""
    found = Counter(words).most_common()
    return [
        (word, _layers(number)) for word, number in found if word and not re.search(r"\s", word)
    ]


def _layers(number: int) -> str:
    return f"{number} layer{'' if number == 1 else 's'}"
