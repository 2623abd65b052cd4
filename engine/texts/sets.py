"""Texts that have a name: calibration sets of the literature and of single domains.

Each is declared once, in `NAMED`; ``--sets``, ``--calib`` and ``--text`` take their names. A part
of each is for calibration and another one for evaluation, so that neither holds the other. They are
datasets of the hub; ``code`` and ``prose`` are this machine's standard library where the hub cannot
be reached, and always for the demo, which knows no other text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from engine.texts import stdlib

Part: TypeAlias = Literal["train", "test"]
"""What a part of a set is for: calibration, or evaluation."""
Library: TypeAlias = Callable[[stdlib.Split], Iterator[tuple[str, str]]]

CHAT_PREFIX = "chat:"
"""Before a calibration set whose chats the tokenizer's template is to render."""
GENERATED: Mapping[str, str] = {
    "random": "tokens drawn uniformly: no text at all, the worst case",
    "own": "what the model itself writes, by plain sampling",
    "eval": "the part of each evaluation text's domain that is not evaluated, one set per text",
}
"""Sets that are made from the model or from the evaluation texts, with a line of help."""


class Source(NamedTuple):
    """Rows of the hub."""

    dataset: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    """Joined by line breaks, row by row."""
    file: str = ""
    """The only file that is downloaded; empty for all."""
    rows: int = 0
    """How many of the first rows are used; 0 for all."""


@dataclass(frozen=True)
class NamedSet:
    """A text with a name."""

    name: str
    domain: str
    """One word for what it is about."""
    help: str
    train: Source | None = None
    """What to calibrate on; None for a set of the standard library alone."""
    test: Source | None = None
    """What to evaluate on; None takes the last rows of ``train``, which then lacks them."""
    library: Library | None = None
    """Modules or topics of the standard library to use in its place."""
    backwards: bool = False
    """Whether the library's training part is read from its end, as the demo's calibration is."""


NAMED: Mapping[str, NamedSet] = {
    each.name: each
    for each in (
        NamedSet(
            "c4", "general", "web pages; the calibration set of GPTQ, SparseGPT and Wanda",
            Source("allenai/c4", None, "train", ("text",), "en/c4-train.00000-of-01024.json.gz",
                   20_000),
            Source("allenai/c4", None, "train", ("text",),
                   "en/c4-validation.00000-of-00008.json.gz", 2_000),
        ),
        NamedSet(
            "wikitext2", "general", "Wikipedia; what most papers evaluate on",
            Source("Salesforce/wikitext", "wikitext-2-raw-v1", "train", ("text",)),
            Source("Salesforce/wikitext", "wikitext-2-raw-v1", "test", ("text",)),
        ),
        NamedSet(
            "pile", "general", "the Pile's validation set; the calibration set of AWQ",
            Source("mit-han-lab/pile-val-backup", None, "validation", ("text",), rows=20_000),
        ),
        NamedSet(
            "code", "code", "Python source code",
            Source("codeparrot/codeparrot-clean-valid", None, "train", ("content",), rows=10_000),
            library=stdlib.modules, backwards=True,
        ),
        NamedSet(
            "prose", "prose", "English about Python: the topics of pydoc, always of this machine",
            library=stdlib.topics,
        ),
        NamedSet(
            "math", "math", "word problems with their solutions (GSM8K)",
            Source("openai/gsm8k", "main", "train", ("question", "answer")),
            Source("openai/gsm8k", "main", "test", ("question", "answer")),
        ),
        NamedSet(
            "medical", "medical", "questions about abstracts of PubMed, with answers (PubMedQA)",
            Source("qiaojin/PubMedQA", "pqa_labeled", "train", ("question", "long_answer")),
        ),
        NamedSet(
            "legal", "legal", "opinions of the Supreme Court of the United States (LexGLUE)",
            Source("coastalcph/lex_glue", "scotus", "train", ("text",)),
            Source("coastalcph/lex_glue", "scotus", "test", ("text",)),
        ),
    )
}  # fmt: skip
"""All of them by name, in the order of the help."""
