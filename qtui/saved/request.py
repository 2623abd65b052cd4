"""Parse what is typed to save something: ``[SUBJECT] PATH[!]``.

A path may have blanks in it; where its first word could be taken for a subject it is put in
quotes, or after the subject: ``"tables of May.csv"``, ``table tables of May.csv``.
"""

from __future__ import annotations

import difflib

import msgspec

from engine.errors import UsageError
from qtui.saved.subjects import suggested
from qtui.saved.view import SUBJECTS, Subject, View
from qtui.views.text import printable

QUOTES = ('"', "'")


class Request(msgspec.Struct, frozen=True):
    """What was typed, taken apart."""

    subject: Subject
    path: str
    replace: bool = False


def read_request(text: str, view: View) -> Request:
    """``[SUBJECT] PATH[!]`` as its parts.

    With no subject a ``.toml`` is the recipe and anything else the table; with no path it is the
    suggested name. Quotes around the path are taken off; one that is not closed may be left open.

    Raises:
        UsageError: the first of several words is like a subject and is none.
    """
    text = text.strip()
    first, _, rest = text.partition(" ")
    subject: Subject | None = None
    if first in SUBJECTS:
        subject, text = first, rest.strip()
    elif meant := misspelt(text):
        raise UsageError(
            f"{printable(first)}: cannot be saved: did you mean {meant}? If it is part of "
            "a file name, put the name in quotes"
        )
    path = text.removesuffix("!").rstrip()
    replace = text.endswith("!")
    if path[:1] in QUOTES:
        path = path[1:].removesuffix(path[0])
    if subject is None:
        subject = "recipe" if path.lower().endswith(".toml") else "table"
    return Request(subject, path or suggested(subject, view), replace)


def misspelt(text: str) -> Subject | None:
    """The subject that the first of several words is like, where it is none itself."""
    first, _, rest = text.strip().partition(" ")
    if first in SUBJECTS or not rest.strip() or first[:1] in QUOTES:
        return None
    word = first.lower()
    close = difflib.get_close_matches(word, SUBJECTS, n=1, cutoff=0.7)
    for subject in SUBJECTS:
        if (len(word) > 2 and subject.startswith(word)) or subject in close:
            return subject
    return None
