"""Export targets: each is declared once, in `engine.export.targets` or by a plugin.

A declaration says what a target can express, in text and numbers, so that the command line and the
terminal can ask before any tensor library is imported. A target is a folder of files, written by an
`engine.export.writer.Writer` that it names; or one file, a recipe in another tool's own words,
whose text it returns itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from engine.errors import UsageError
from engine.formats.grammar import Format
from engine.plugins import load_plugins
from engine.protocol import Role

Expresses: TypeAlias = Callable[[Format, Sequence[int], str], str | None]
"""Why a format cannot be written for a weight of this shape, in a checkpoint of this dtype (by
torch's name); None if it can."""


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """A layer, as far as a target needs to know it."""

    name: str
    """As on disk."""
    kind: str
    block: int
    """-1 outside of blocks."""
    role: Role
    shape: tuple[int, ...]
    dtype: str
    """By torch's name."""
    group: int = -1
    """Number of its fused group; -1 for none."""
    tied: bool = False
    """Whether it is a head or an embedding that are one tensor on disk."""


class WordsFor(msgspec.Struct, frozen=True, kw_only=True):
    """A layer with the names that other tools know it by."""

    weight: Weight
    module: str
    """Its module in transformers; empty if it has none of its own."""
    tensors: tuple[str, ...]
    """Its tensors on disk: of experts all of them."""
    format: Format | None
    """None where it is kept as stored."""


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """All that the text of a recipe file is made of."""

    checkpoint: str
    """Its name."""
    model_type: str
    """``model_type`` of its config."""
    blocks: int
    layers: tuple[WordsFor, ...]
    """Every layer, in the order of the model."""
    others: tuple[str, ...] = ()
    """Linear modules of transformers that are no layer, such as routers: never quantised."""

    @property
    def quantised(self) -> list[tuple[WordsFor, Format]]:
        """The layers that are not kept."""
        return [
            (layer, layer.format)
            for layer in self.layers
            if layer.format is not None and not layer.format.kept
        ]

    @property
    def kept(self) -> list[str]:
        """Modules of `linear` layers and heads that are kept, and of `others`.

        A tool that quantises every linear module by default must skip these.
        """
        linear = [
            layer.module
            for layer in self.layers
            if (layer.format is None or layer.format.kept)
            and layer.weight.role not in ("embedding", "experts")
        ]
        return [*linear, *self.others]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of file or folder that a recipe is exported to."""

    name: str
    """Value of ``--to``."""
    help: str
    """One line: what it is, and what loads it."""
    why_not_expressed: Expresses
    writer: str | Callable[[], object] = "engine.export.recipe_file:RecipeFile"
    """``module:NAME`` of an `engine.export.writer.Writer`, or of a function that returns one. The
    default writes `words`."""
    why_not_weight: Callable[[Format, Weight], str | None] = lambda _fmt, _weight: None
    """Why a weight that the format fits cannot take it all the same, for its role or name; None if
    it can. Not called for kept formats."""
    alike: Callable[[Format | None, Weight], str | None] = lambda _fmt, _weight: None
    """Weights with the same key must have one format (None: kept); None if it may have any."""
    why_alike: str = ""
    """Why, as the rest of a sentence."""
    mixed: str = ""
    """What cannot use fused groups with several formats, though they are written, and why."""
    folds: bool = False
    """Whether the layer before can be written with the scale of ``+awq`` and ``+smooth``, which is
    one for all layers that share an input: a fused group then needs one format."""
    unties: str = ""
    """What happens to a tied head or embedding that is changed, where the target can have it."""
    form: str = ""
    """What cannot hold a format, in errors; the name if empty."""
    words: Callable[[Words], str] | None = None
    """The text of a recipe file, for a target that is one."""
    names: Literal["modules", "disk"] = "modules"
    """Whether the tool knows layers by their modules in transformers, so that each needs one."""
    ending: str = ""
    """The ending of a file, as ``.yaml``; empty for a folder."""
    use: str = ""
    """How such a file is used: one line with ``{file}`` and ``{model}`` for its path and the
    checkpoint's as a shell reads them, ``{path}`` and ``{source}`` as Python does."""
    differs: str = ""
    """What the tool computes otherwise than qtui did when it measured; a sentence."""

    @property
    def is_file(self) -> bool:
        """Whether it is one file, not a folder."""
        return self.words is not None or bool(self.ending)


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Register a target for ``--to``, its help and its errors.

    Raises:
        ValueError: a target with this name exists.
    """
    _load_ours()
    if target.name in _TARGETS:
        raise ValueError(f"there is an export target {target.name!r} already")
    _TARGETS[target.name] = target


def targets() -> list[Target]:
    """All targets, ours first."""
    _load_ours()
    load_plugins()
    return list(_TARGETS.values())


def target_named(name: str) -> Target:
    """The target with this name.

    Raises:
        UsageError: no target has this name; the message lists all.
    """
    for target in targets():
        if target.name == name:
            return target
    raise UsageError(f"unknown export target {name!r}: known are {listed()}")


def listed() -> str:
    """All targets with their descriptions, to end a sentence: ``checkpoint (…), …``."""
    return ", ".join(f"{target.name} ({target.help})" for target in targets())


def _load_ours() -> None:
    # By name: those modules import this one.
    importlib.import_module("engine.export.targets")
