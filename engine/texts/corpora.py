"""Evaluation and calibration texts: files, datasets, this machine's standard library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import TextError, first_line
from engine.texts import stdlib as stdlib_text
from engine.texts.hub import load_split

Notify = Callable[[str], None]

JOINT = "\n\n"
"""Separator of the texts of a set."""

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


@dataclass(frozen=True)
class Text:
    """A text to evaluate or calibrate on."""

    name: str
    """Shown with every perplexity."""
    content: str

    @property
    def sha256(self) -> str:
        """Hash of the UTF-8 bytes."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def evaluation_text(asked: str | None, *, demo: bool, notify: Notify) -> Text:
    """The text that a session is evaluated on.

    Args:
        asked: a text file, a dataset on disk or its name; None for the default: the held-out
            standard library for the demo, otherwise WikiText-2's raw test set.
        demo: whether the bundled checkpoint is evaluated.
        notify: called with a sentence if another text is used instead.

    Raises:
        TextError: the text cannot be read.
    """
    if asked is not None:
        return _named(asked)
    if demo:
        return held_out_library()
    try:
        return _wikitext("test")
    except TextError as error:
        notify(f"{error}; evaluating on this machine's Python standard library instead")
        return standard_library()


def calibration_text(asked: str | None, *, demo: bool, notify: Notify) -> Text:
    """The calibration text; never the evaluation text, unless it is named.

    Args:
        asked: a text file, a dataset on disk or its name; None for the default: the standard
            library modules that the demo was trained on, otherwise WikiText-2's raw training set.
        demo: whether the bundled checkpoint is calibrated.
        notify: called with a sentence if another text is used instead.

    Raises:
        TextError: the text cannot be read.
    """
    if asked is not None:
        return _named(asked, "train", option="--calib")
    if demo:
        return learnt_library()
    try:
        return _wikitext("train")
    except TextError as error:
        notify(f"{error}; calibrating on this machine's Python standard library instead")
        return learnt_library()


def learnt_library() -> Text:
    """Standard library modules that the demo was trained on, the last first.

    An evaluation on the standard library reads them in the other direction, if it reaches them at
    all.
    """
    modules = [text for _, text in stdlib_text.modules("train")]
    return _library("stdlib train", modules[::-1], option="--calib")


def held_out_library() -> Text:
    """Standard library modules that the demo was not trained on."""
    return _library("stdlib held-out", [text for _, text in stdlib_text.modules("held-out")])


def standard_library() -> Text:
    """All of the standard library: ``pydoc``'s topics (prose), then its modules (code)."""
    prose = [text for split in ("train", "held-out") for _, text in stdlib_text.topics(split)]
    code = [text for split in ("held-out", "train") for _, text in stdlib_text.modules(split)]
    mixed = [text for pair in zip(code, prose, strict=False) for text in pair]
    return _library("stdlib", mixed + code[len(prose) :])


SURE_CHARACTERS = 10
"""Characters to tokenise for each token wanted; text has three to five per token."""

UNSURE_TOKENS = 512
"""Tokens before a cut that may differ from those of the whole text; a generous bound."""


def first_tokens(tokenizer: Any, content: str, wanted: int) -> list[int]:
    """At least the first ``wanted`` ids of a text, equal to those from tokenising all of it.

    If the tokenizer splits text into words first, a prefix of the text has the same first tokens,
    and the rest of a long text is skipped. Otherwise all of it is tokenised.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    length = wanted * SURE_CHARACTERS
    if backend is not None and backend.pre_tokenizer is not None and length < len(content):
        ids: list[int] = tokenizer(content[:length])["input_ids"]
        if len(ids) >= wanted + UNSURE_TOKENS:
            return ids[: len(ids) - UNSURE_TOKENS]
    whole: list[int] = tokenizer(content)["input_ids"]
    return whole


def _library(name: str, texts: list[str], option: str = "--text") -> Text:
    if not texts:
        raise TextError(
            f"this Python has no standard library sources on disk: give a text with {option} FILE"
        )
    return Text(name, JOINT.join(texts))


def _named(asked: str, split: str = "test", option: str = "--text") -> Text:
    path = Path(asked).expanduser()
    if path.is_file():
        return read_text_file(path)
    if path.is_dir():
        return Text(path.name, JOINT.join(_texts(_from_disk(path), str(path))))
    looks_like_path = asked.startswith((".", "/", "~")) or path.suffix in {".txt", ".md", ".jsonl"}
    if looks_like_path:
        raise TextError(f"{option} {asked}: no such text file or dataset folder")
    name, _, chosen = asked.partition(":")
    return Text(asked, JOINT.join(_texts(load_split(name, None, chosen or split), asked)))


def read_text_file(path: Path) -> Text:
    """A file as one text.

    Raises:
        TextError: it is not UTF-8, or empty.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: not UTF-8 at byte {error.start}: convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.strip():
        raise TextError(f"{path}: the file is empty")
    return Text(path.name, content)


def _wikitext(split: str) -> Text:
    path, config = WIKITEXT
    return Text(f"wikitext-2 {split}", JOINT.join(_texts(load_split(path, config, split), path)))


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise TextError(
            f"{path}: not a dataset saved with datasets.save_to_disk: {first_line(error)}"
        ) from error


def _texts(dataset: Any, name: str) -> list[str]:
    if hasattr(dataset, "keys"):
        raise TextError(f"{name} has several splits ({', '.join(dataset)}): name one of them")
    columns = list(dataset.column_names)
    column = "text" if "text" in columns else columns[0] if columns else ""
    if not column or not isinstance(dataset[0][column], str):
        raise TextError(f"{name} has no text column: its columns are {', '.join(columns)}")
    return list(dataset[column])
