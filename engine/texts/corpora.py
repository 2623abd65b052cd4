"""Evaluation and calibration texts: files, datasets, this machine's standard library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import TextError, UsageError, first_line
from engine.texts import stdlib as stdlib_text
from engine.texts.files import SUFFIXES, read_text_file, rows_of_dataset, rows_of_parquet
from engine.texts.hub import NoSuchSplitError, load_split
from engine.texts.named_sets import named_text
from engine.texts.naming import on_disk, parquet_files, split_and_column
from engine.texts.rows import Asked, Notify, text_of
from engine.texts.sets import CHAT_PREFIX, NAMED, Part
from engine.texts.text import JOINT, Text
from engine.texts.tokenizing import token_ids

__all__ = ["Text", "calibration_set", "calibration_text", "evaluation_text", "first_tokens"]

FOLDER_SUFFIXES = (".txt", ".md", ".rst", ".py")
"""Files of a folder of texts."""

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


def evaluation_text(
    asked: str | None, *, demo: bool, notify: Notify, tokenizer: Any = None
) -> Text:
    """The text that a session is evaluated on.

    Args:
        asked: a text file, a dataset on disk or its name, with a split and a column after colons;
            or one of `NAMED`; None for the default: the held-out standard library for the demo,
            otherwise WikiText-2's raw test set.
        demo: whether the bundled checkpoint is evaluated.
        notify: called with a sentence if another text is used instead, or rows are skipped.
        tokenizer: of the model, whose template writes chats.

    Raises:
        TextError: the text cannot be read.
    """
    if asked is not None:
        return _given(asked, "test", "--text", tokenizer, notify, demo=demo)
    if demo:
        return held_out_library()
    try:
        return _wikitext("test", notify)
    except TextError as error:
        notify(f"{error}; evaluating on this machine's Python standard library instead")
        return standard_library()


def calibration_text(
    asked: str | None, *, demo: bool, notify: Notify, tokenizer: Any = None
) -> Text:
    """The calibration text; never the evaluation text, unless it is named.

    Args:
        asked: as for `evaluation_text`; None for the default: the standard library modules that the
            demo was trained on, otherwise WikiText-2's raw training set.
        demo: whether the bundled checkpoint is calibrated.
        notify: called with a sentence if another text is used instead, or rows are skipped.
        tokenizer: of the model, whose template writes chats.

    Raises:
        TextError: the text cannot be read.
    """
    if asked is not None:
        return _given(asked, "train", "--calib", tokenizer, notify, demo=demo)
    if demo:
        return learnt_library()
    try:
        return _wikitext("train", notify)
    except TextError as error:
        notify(f"{error}; calibrating on this machine's Python standard library instead")
        return learnt_library()


def calibration_set(asked: str, *, demo: bool, notify: Notify, tokenizer: Any = None) -> Text:
    """A set to calibrate on, among several that are compared.

    Args:
        asked: one of `NAMED`, or as for `evaluation_text`, or a folder of text files. Chats need
            ``chat:`` before it, since the template that renders them is the checkpoint's program.
        demo: whether the bundled checkpoint is calibrated.
        notify: called with a sentence if another text is used instead, or rows are skipped.
        tokenizer: of the model.

    Raises:
        TextError: the text cannot be read.
    """
    chats = asked.startswith(CHAT_PREFIX)
    asked = asked.removeprefix(CHAT_PREFIX)
    folder = None if asked in NAMED else on_disk(asked)
    if folder is not None and folder.path.is_dir() and not folder.rest:
        files = [path for path in _text_files(folder.path) if path.is_file()]
        if files and not parquet_files(folder.path):
            texts = [
                read_text_file(path, Asked(str(path), option="--sets"), notify).content
                for path in files
            ]
            return Text(folder.path.name, JOINT.join(texts), documents=len(texts))
    return _given(asked, "train", "--sets", tokenizer, notify, demo=demo, chats=chats)


def _text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in FOLDER_SUFFIXES)


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


def first_tokens(
    tokenizer: Any, content: str, wanted: int, *, special_tokens: bool = True
) -> list[int]:
    """At least the first ``wanted`` ids of a text, equal to those from tokenising all of it.

    If the tokenizer splits text into words first, a prefix of the text has the same first tokens,
    and the rest of a long text is skipped. Otherwise all of it is tokenised.

    Args:
        tokenizer: of the model.
        content: the text.
        wanted: how many.
        special_tokens: whether the tokenizer adds its own, such as BOS.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    length = wanted * SURE_CHARACTERS
    if backend is not None and backend.pre_tokenizer is not None and length < len(content):
        ids = token_ids(tokenizer, content[:length], special_tokens=special_tokens)
        if len(ids) >= wanted + UNSURE_TOKENS:
            return ids[: len(ids) - UNSURE_TOKENS]
    return token_ids(tokenizer, content, special_tokens=special_tokens)


def _library(name: str, texts: list[str], option: str = "--text") -> Text:
    if not texts:
        raise TextError(
            f"this Python has no standard library sources on disk: give a text with {option} FILE"
        )
    return Text(name, JOINT.join(texts), documents=len(texts))


def _given(
    asked: str,
    split: Part,
    option: str,
    tokenizer: Any,
    notify: Notify,
    *,
    demo: bool,
    chats: bool | None = None,
) -> Text:
    if asked in NAMED:
        return named_text(asked, split, demo=demo, notify=notify)
    try:
        found = on_disk(asked)
    except RuntimeError as error:
        raise UsageError(f"{option} {asked}: there is no such user") from error
    named = Asked(asked, option=option, tokenizer=tokenizer, chats=chats)
    if found is None:
        return _of_hub(named, split, notify)
    path, rest = found
    named = replace(named, given=asked[: len(asked) - len(rest) - bool(rest)])
    if path.is_dir():
        return _of_folder(path, rest, named, notify)
    return read_text_file(path, replace(named, column=rest), notify)


def _of_hub(asked: Asked, split: str, notify: Notify) -> Text:
    """A dataset of the hub; what follows its name is a split, or else a column."""
    given = asked.given
    file = given.split(":")[0]
    if given.startswith((".", "/", "~")) or Path(file).suffix.lower() in SUFFIXES:
        raise TextError(f"{asked.option} {given}: no such text file or dataset folder")
    name, _, rest = given.partition(":")
    first, column = split_and_column(rest)
    try:
        dataset = load_split(name, None, first or split)
    except NoSuchSplitError:
        if not first or column:
            raise
        first, column = "", first
        dataset = load_split(name, None, split)
    called = f"{name}:{first}" if first else name
    named = replace(asked, given=called, column=column)
    return text_of(rows_of_dataset(called, dataset), called, named, notify)


def _of_folder(path: Path, rest: str, asked: Asked, notify: Notify) -> Text:
    """A dataset on disk; what follows its path is a split, a column, or both."""
    found = parquet_files(path)
    dataset: Any = found or _from_disk(path)
    first, column = split_and_column(rest)
    name = path.name
    if len(found) == 1 and (not first or first not in found):
        ((_split, dataset),) = found.items()
    elif hasattr(dataset, "keys"):
        splits = list(dataset)
        split = first if first in splits else splits[0] if len(splits) == 1 else ""
        if not split:
            raise TextError(
                f"{path} has several splits ({', '.join(splits)}): name one of them, as in "
                f"{asked.option} {asked.given}:{splits[0]}"
            )
        if first == split:
            first, column = column, ""
            name, asked = f"{name}:{split}", replace(asked, given=f"{asked.given}:{split}")
        dataset = dataset[split]
    column = f"{first}:{column}" if column else first
    rows = rows_of_parquet(str(path), dataset) if found else rows_of_dataset(str(path), dataset)
    return text_of(rows, name, replace(asked, column=column), notify)


def _wikitext(split: str, notify: Notify) -> Text:
    path, config = WIKITEXT
    rows = rows_of_dataset(path, load_split(path, config, split))
    return text_of(rows, f"wikitext-2 {split}", Asked(path), notify)


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except IndexError as error:  # it expects at least one file of rows
        raise TextError(f"{path} is empty: it has no rows") from error
    except Exception as error:
        raise TextError(
            f"{path}: neither a dataset saved with datasets.save_to_disk nor a folder of Parquet "
            f"files: {first_line(error)}"
        ) from error
