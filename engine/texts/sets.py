"""Texts that have a name: calibration sets of the literature and of single domains.

Each is declared once, in `NAMED`; ``--sets``, ``--calib`` and ``--text`` take their names. A part
of each is for calibration and another one for evaluation, so that neither holds the other. They are
datasets of the hub; ``code`` and ``prose`` are this machine's standard library where the hub cannot
be reached, and always for the demo, which knows no other text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.errors import TextError
from engine.texts import stdlib
from engine.texts.hub import load_split
from engine.texts.rows import Notify
from engine.texts.text import JOINT, Text

Part: TypeAlias = Literal["train", "test"]
"""What a part of a set is for: calibration, or evaluation."""
Library: TypeAlias = Callable[[stdlib.Split], Iterator[tuple[str, str]]]

CHAT_PREFIX = "chat:"
"""Before a calibration set whose chats the tokenizer's template is to render."""
GENERATED: Mapping[str, str] = {
    "random": "tokens drawn uniformly: no text at all, the worst case",
    "own": "what the model itself writes, by plain sampling",
    "eval": "what of an evaluation text's domain is not evaluated, a set for each text",
}
"""Sets that are made from the model or from the evaluation texts, with a line of help."""

HELD_OUT = 10
"""One row in so many, the last ones, is for evaluation where a dataset has one split."""


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


def named_text(name: str, part: Part, *, demo: bool, notify: Notify) -> Text:
    """A part of a named set.

    Args:
        name: one of `NAMED`.
        part: what it is for.
        demo: whether the model is the bundled checkpoint.
        notify: called with a sentence if the standard library is used in its place.

    Raises:
        TextError: the dataset cannot be had; the message says what to do.
    """
    found = NAMED[name]
    if found.train is None or (demo and found.library is not None):
        return _of_library(found, part)
    try:
        return _of_hub(found, found.train, part)
    except TextError as error:
        if found.library is not None:
            notify(f"{error}; {name} is this machine's Python standard library instead")
            return _of_library(found, part)
        local = ", ".join(each for each in NAMED if NAMED[each].library is not None)
        raise TextError(
            f"the set {name}: {error}: load it once on a machine with a network and copy the cache "
            f"of datasets (HF_HOME), name a file or folder instead, or one of {local}, which need "
            "no network"
        ) from error


def _of_library(found: NamedSet, part: Part) -> Text:
    assert found.library is not None
    texts = [text for _, text in found.library("train" if part == "train" else "held-out")]
    if not texts:
        raise TextError(
            f"the set {found.name}: this Python has no standard library sources on disk: name a "
            "file instead"
        )
    if part == "train" and found.backwards:
        texts.reverse()
    kind = "" if found.library is stdlib.modules else f" {found.name}"
    where = "train" if part == "train" else "held-out"
    return Text(f"stdlib{kind} {where}", JOINT.join(texts), documents=len(texts))


def _of_hub(found: NamedSet, train: Source, part: Part) -> Text:
    source = found.test if part == "test" and found.test is not None else train
    dataset = load_split(source.dataset, source.config, source.split, source.file)
    count = len(dataset)
    if source.rows:
        count = min(count, source.rows)
    rows = range(count)
    if found.test is None:
        cut = count - max(1, count // HELD_OUT)
        rows = rows[:cut] if part == "train" else rows[cut:]
    texts = _joined(dataset.select(rows), source)
    if not any(map(str.strip, texts)):
        raise TextError(
            f"the dataset {source.dataset} has no text in {' and '.join(source.columns)}"
        )
    return Text(f"{found.name} {part}", JOINT.join(texts), documents=len(texts))


def _joined(dataset: Any, source: Source) -> list[str]:
    missing = [each for each in source.columns if each not in dataset.column_names]
    if missing:
        raise TextError(
            f"the dataset {source.dataset} has no column {missing[0]!r}: its columns are "
            f"{', '.join(dataset.column_names)}"
        )
    columns = [dataset[each] for each in source.columns]
    return ["\n".join(map(str, row)) for row in zip(*columns, strict=True)]
