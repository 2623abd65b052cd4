"""What can be saved, in which forms, and the file name suggested for it."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from engine.protocol import EffectKey
from qtui.saved.tables import why_not
from qtui.saved.view import SUBJECTS, Subject, View

Form: TypeAlias = Literal[".csv", ".json", ".svg", ".txt", ".toml", ".html", ".md"]
FORM_WORDS: dict[Form, str] = {
    ".csv": "comma-separated, full precision",
    ".json": "one document, full precision",
    ".svg": "a picture with selectable text",
    ".txt": "aligned text",
    ".toml": "a recipe file",
    ".html": "one page, without scripts",
    ".md": "Markdown",
}
_TABLE: tuple[Form, ...] = (".csv", ".json", ".svg", ".txt")
FORMS: dict[Subject, tuple[Form, ...]] = {
    "table": _TABLE,
    "histogram": _TABLE,
    "layer": _TABLE,
    "experts": _TABLE,
    "log": (".txt", ".csv", ".json", ".svg"),
    "screen": (".svg", ".txt"),
    "recipe": (".toml",),
    "report": (".html", ".md", ".json"),
}
"""Forms of every subject; the first is the one of its suggested name."""


def subjects(view: View) -> list[tuple[Subject, str, str]]:
    """What can be saved: subject, suggested name, and why it cannot be now (empty where it can)."""
    return [(each, suggested(each, view), why_not(each, view)) for each in SUBJECTS]


def suggested(subject: Subject, view: View) -> str:
    """A file name: ``demo-sweep-int4-g128.csv``."""
    session = view.session
    name = session.checkpoint.name if session.checkpoint is not None else view.source
    parts = [name.rstrip("/").rsplit("/", 1)[-1]]
    key = EffectKey(view.direction, view.format)
    if subject == "table":
        swept = key in session.effects.measured or key in session.effects.estimated
        way = "sweep" if view.direction == "degrade" else view.direction
        parts += [way, view.format] if swept else ["triage"]
    elif subject in ("histogram", "layer", "experts"):
        parts += [(view.layer or "").removeprefix("model."), subject]
    else:
        parts.append(subject)
    slug = "-".join(re.sub(r"[^\w.+=,-]+", "-", part).strip("-.") for part in parts if part)
    # A name of a file holds 255 bytes, and needs room for a number.
    return slug.encode()[:200].decode(errors="ignore") + FORMS[subject][0]
