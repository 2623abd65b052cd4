"""What can be wrong with a text that a model wrote; each detector is defined on its own.

No arrays: the interface looks for symptoms too. A detector says nothing of a text that is too short
for it. `docs/symptoms.md` has all definitions in one place.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec

from engine import protocol as p

Kind: TypeAlias = Literal[
    "not-finite", "one-token", "loop", "list-loop", "garble", "language", "early-end", "refusal",
    "length",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds, the gravest first: where one explains another, the first of them counts."""
RELATIVE: tuple[Kind, ...] = ("garble", "language", "early-end", "length")
"""Kinds that are told by what the reference wrote, so that it never shows them itself."""
WORDS: Mapping[str, str] = {
    "not-finite": "logits not finite",
    "one-token": "one token only",
    "loop": "loop",
    "list-loop": "list loop",
    "garble": "garbled",
    "language": "other language",
    "early-end": "ends early",
    "refusal": "refuses",
    "length": "does not end",
}
"""What each is called on a screen."""

REPEATS = 3
"""Times that a period is there in a loop."""
LOOP_TOKENS = 16
"""Tokens that a loop covers at least: short refrains are language."""
WINDOW = 64
"""Last tokens that distinct 4-grams are counted in."""
DISTINCT = 0.5
"""Share of distinct 4-grams below which a text repeats itself (Li et al. 2016 count n-grams so)."""
ONE_TOKEN = 0.9
"""Share of one token."""
ONE_TOKEN_AT_LEAST = 8
"""Tokens of a text that can be all one token."""
LIST_LINES = 4
"""Lines that say the same, but for their numbers."""
GARBLED = 3.0
"""Nats per token by which the reference is more surprised by a text than by its own."""
GARBLED_AT_LEAST = 8
"""Tokens of a text that can be garbled: over fewer, one unlikely word decides."""
BROKEN = 0.05
"""Share of characters that are no text."""
RATIO = 4
"""How many times shorter or longer than the reference's a text is."""
LENGTH_AT_LEAST = 16
"""Tokens of the longer one of both."""
LETTERS = 24
"""Letters by which a script is told, of both texts."""
SCRIPT = 0.6
"""Share of letters in one script."""
LANGUAGE_WORDS = 12
"""Words by which a language is told, of both texts."""


class Loop(NamedTuple):
    """A stretch of tokens that repeats up to the end."""

    period: int
    """Its length in tokens; 0 where no exact period was found."""
    start: int
    """Number of the first token of its first occurrence."""


class Symptom(msgspec.Struct, frozen=True):
    """What a detector found in a text."""

    kind: Kind
    evidence: dict[str, float] = {}
    """The figures behind it, by name."""


def loop(tokens: Sequence[int]) -> Loop | None:
    """The smallest period over the tail; None if it repeats less than `REPEATS` times.

    The tail must cover `LOOP_TOKENS`, so that a period of one token is there 16 times.
    """
    count = len(tokens)
    for period in range(1, count // REPEATS + 1):
        same = 0
        while same + period < count and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        covered = same + period
        if covered >= max(REPEATS * period, LOOP_TOKENS):
            return Loop(period, count - covered)
    return None


def distinct(tokens: Sequence[int], n: int = 4) -> float:
    """Distinct n-grams over all n-grams of the last `WINDOW` tokens; 1 of fewer than n tokens."""
    tail = tokens[-WINDOW:]
    grams = [tuple(tail[at : at + n]) for at in range(len(tail) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


_NUMBERED = re.compile(r"^\s*(?:[-*•]|\(?\w{1,3}[.):])?\s*")


def same_lines(text: str) -> int:
    """Last lines of a text that say the same, but for their numbers and bullets; 1 if none do."""
    lines = [line for line in text.split("\n") if line.strip()]
    said = [re.sub(r"\d+", "#", _NUMBERED.sub("", line, count=1)).strip() for line in lines]
    if len(said) > 1 and said[-2].startswith(said[-1]):
        said.pop()  # the last one is being written
    same = 1
    while same < len(said) and said[-1] and said[-1 - same] == said[-1]:
        same += 1
    return same


_NO_TEXT = ("Cc", "Cn", "Co")


def broken(text: str) -> float:
    """Share of characters that are replacements, unassigned or control characters.

    A replacement at the end does not count: a text of so many tokens may end within a character.
    """
    text = text.removesuffix("\ufffd")
    if not text:
        return 0.0
    bad = sum(
        each == "\ufffd" or (unicodedata.category(each) in _NO_TEXT and not each.isspace())
        for each in text
    )
    return bad / len(text)


def script(text: str) -> str:
    """The script that most letters are in, such as ``LATIN``; empty if there are few letters."""
    letters = [each for each in text if each.isalpha()]
    if len(letters) < LETTERS:
        return ""
    counted = Counter(unicodedata.name(each, "?").split(" ")[0] for each in letters)
    name, most = counted.most_common(1)[0]
    return name if most >= SCRIPT * len(letters) else ""


_FUNCTION_WORDS = {
    "English": "the and of to in is that it for was with as on are this be by an not you",
    "French": "le la les de des et un une est que dans pour qui sur pas au ce il elle avec",
    "German": "der die das und ist nicht ein eine zu den mit von auf für im dem sich auch es ich",
    "Spanish": "el los las de que y en un una es por con para del se no su como más al",
    "Italian": "il lo gli di che e un una per non con del della sono si anche nel questo è da",
    "Portuguese": "o os as de que e um uma não em para com do da se na no por mais como",
    "Dutch": "de het een en van in is dat op te niet met voor zijn er aan ook als bij",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}


def language(text: str) -> str:
    """The language that a text's most frequent words belong to; empty where that is not clear.

    A language is told by 20 function words each: at least a fifth of the words are among them, four
    different ones, and twice as many as among those of any other.
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < LANGUAGE_WORDS:
        return ""
    counted = sorted(
        ((sum(word in common for word in words), name) for name, common in _LANGUAGES.items()),
        reverse=True,
    )
    (most, name), (second, _) = counted[:2]
    clear = most >= 0.2 * len(words) and most >= 2 * second
    return name if clear and len(_LANGUAGES[name] & set(words)) >= 4 else ""


_REFUSAL = re.compile(
    r"^\W*(?:(?:i['\u2019]?m|i am)\s+(?:\w+\s+){0,2}?(?:sorry|unable|not able|afraid)"
    r"|sorry,?\s+(?:but\s+)?(?:i|we)\b|i\s+(?:can\s?not|can['\u2019]?t|won['\u2019]?t|will not)\b"
    r"|as an (?:ai|artificial|language)|i (?:must|have to) (?:decline|refuse)"
    r"|unfortunately,? i (?:can|am)|i apologi[sz]e)",
    re.I,
)


def refuses(text: str) -> bool:
    """Whether a text begins like a refusal, in English."""
    return _REFUSAL.match(text) is not None


def symptoms(said: p.Continuation, reference: p.Continuation) -> list[Symptom]:
    """Everything wrong with what one model wrote, the gravest first.

    Args:
        said: what is looked at.
        reference: what the reference wrote; the same for the reference itself, of which only what
            it does by itself is found: loops, refusals, nonsense.
    """
    return sorted(_symptoms(said, reference), key=lambda each: KINDS.index(each.kind))


def _symptoms(said: p.Continuation, reference: p.Continuation) -> Iterator[Symptom]:
    if not said.finite:
        yield Symptom("not-finite")
    tokens = said.tokens[:-1] if said.ended else said.tokens
    yield from _repeating(tokens, said.text)
    yield from _garbled(said, reference)
    for tell in (script, language):
        here, there = tell(said.text), tell(reference.text)
        if here and there and here != there:
            yield Symptom("language")
            break
    yield from _length(said, reference)
    if refuses(said.text):
        yield Symptom("refusal")


def _repeating(tokens: Sequence[int], text: str) -> Iterator[Symptom]:
    if len(tokens) >= ONE_TOKEN_AT_LEAST:
        (token, most) = Counter(tokens).most_common(1)[0]
        if most >= ONE_TOKEN * len(tokens):
            yield Symptom("one-token", {"token": token, "share": most / len(tokens)})
            return
    if (lines := same_lines(text)) >= LIST_LINES:
        yield Symptom("list-loop", {"lines": lines})
    if (found := loop(tokens)) is not None:
        yield Symptom("loop", {"period": found.period, "start": found.start})
    elif len(tokens) >= WINDOW // 2 and (share := distinct(tokens)) < DISTINCT:
        yield Symptom("loop", {"distinct_4": share})


def _garbled(said: p.Continuation, reference: p.Continuation) -> Iterator[Symptom]:
    if len(said.tokens) < GARBLED_AT_LEAST:
        return
    more = said.surprise - reference.surprise
    evidence = {"broken": broken(said.text)}
    if math.isfinite(more):
        evidence |= {"surprise": said.surprise, "reference": reference.surprise}
    if (math.isfinite(more) and more > GARBLED) or (
        evidence["broken"] > BROKEN and broken(reference.text) <= BROKEN
    ):
        yield Symptom("garble", evidence)


def _length(said: p.Continuation, reference: p.Continuation) -> Iterator[Symptom]:
    here, there = len(said.tokens), len(reference.tokens)
    evidence = {"tokens": float(here), "reference": float(there)}
    if max(here, there) < LENGTH_AT_LEAST:
        return
    if said.ended and here * RATIO <= there:
        yield Symptom("early-end", evidence)
    if reference.ended and not said.ended and there * RATIO <= here:
        yield Symptom("length", evidence)
