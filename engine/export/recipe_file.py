"""Writes a recipe in another tool's own words: one file, with the names that the tool uses."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.checkpoint import Checkpoint, DiskLayer, fused_groups, list_layers
from engine.errors import EngineError, InfeasibleError, UsageError
from engine.export.held import mixed, nearest, refused, untied
from engine.export.modules import Modules, read_modules
from engine.export.refusal import NotExportable, some_of
from engine.export.target import Target, Weight, Words, WordsFor
from engine.export.writer import Exported, Request
from engine.formats.grammar import parse_format
from engine.store.files import write_whole


class RecipeFile:
    """The writer of a target that has `Target.words`."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def check(self, request: Request) -> None:
        """Raise what `write` would raise; see `Writer.check`."""
        self._text(request)

    def write(self, request: Request) -> Exported:
        """Write the file; see `Writer.write`."""
        words, text = self._text(request)
        data = text.encode()
        try:
            write_whole(request.out, data)
        except OSError as error:
            raise EngineError(
                f"{request.out} cannot be written: {error.strerror or error}"
            ) from error
        request.on_progress(len(data), len(data), "")
        quantised = tuple(layer.weight.name for layer, _ in words.quantised)
        return Exported(request.out, len(data), quantised, tuple(self._notes(request, words)))

    def _text(self, request: Request) -> tuple[Words, str]:
        target = self.target
        check_file(request.out, request.checkpoint.folder, overwrite=request.overwrite)
        weights = disk_weights(request.checkpoint)
        known = {weight.name: weight for weight in weights}
        for layer in request.recipe:
            if layer not in known:
                raise UsageError(f"{request.checkpoint.name} has no layer {layer!r}")
        if found := refused(target, weights, request.recipe):
            instead = {
                layer: nearest(target, parse_format(request.recipe[layer]), known[layer])
                for layer in found
                if layer in request.recipe
            }
            instead = {layer: near for layer, near in instead.items()
                       if near != request.recipe[layer]}  # fmt: skip
            raise NotExportable(found, target.form or target.name, instead)
        words = words_for(
            request.checkpoint, weights, request.recipe, trusted=request.trust_remote_code
        )
        if target.names == "modules" and (
            unnamed := {
                layer.weight.name: "transformers has no module for this tensor alone"
                for layer, _ in words.quantised
                if not layer.module
            }
        ):
            raise NotExportable(unnamed, target.form or target.name)
        if not words.quantised:
            raise InfeasibleError("the recipe quantises no layer: nothing to write")
        assert target.words is not None
        return words, target.words(words)

    def _notes(self, request: Request, words: Words) -> list[str]:
        target = self.target
        notes = []
        if target.use:
            path, source = str(request.out), str(request.checkpoint.folder)
            notes.append(
                target.use.format(
                    file=shlex.quote(path), model=shlex.quote(source), path=ascii(path),
                    source=ascii(source),
                )
            )  # fmt: skip
        if target.differs:
            notes.append(target.differs)
        weights = [layer.weight for layer in words.layers]
        if untied(target, weights, request.recipe):
            notes.append(target.unties)
        if unlike := mixed(target, weights, request.recipe):
            notes.append(f"{target.mixed}: {some_of(list(unlike))}")
        return notes


def check_file(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise if a file cannot be written to ``out``, or would replace something.

    Raises:
        UsageError: it exists and may not be overwritten, is a folder, or lies in the folder of the
            checkpoint, ``source``.
        EngineError: the parent folder is missing or cannot be written to.
    """
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise EngineError(f"{out.parent} is not a writable folder; give another path")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies in the checkpoint's own folder; give another path")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give the path of a file")
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise UsageError(f"{out} exists and is not a file; give another path")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; give another path, or overwrite it (--overwrite)")


def disk_weights(checkpoint: Checkpoint) -> list[Weight]:
    """The layers of a checkpoint, as targets know them."""
    rows = list_layers(checkpoint)
    blocks = [-1 if row.block is None else row.block for row in rows]
    groups = fused_groups([row.name for row in rows], blocks, [row.role for row in rows])
    tied = any(
        row.role == "head" and f"{row.name}.weight" not in checkpoint.tensors for row in rows
    )
    return [
        Weight(
            name=row.name,
            kind=row.kind,
            block=block,
            role=row.role,
            shape=tuple(row.shape),
            dtype=checkpoint.dtype,
            group=group,
            tied=tied and row.role in ("head", "embedding"),
        )
        for row, block, group in zip(rows, blocks, groups, strict=True)
    ]


def words_for(
    checkpoint: Checkpoint, weights: list[Weight], recipe: Mapping[str, str], *, trusted: bool
) -> Words:
    """A recipe with the names of transformers' modules.

    Raises:
        CheckpointError: transformers cannot build a model from the config.
    """
    modules = read_modules(checkpoint, trust_remote_code=trusted)
    rows = {row.name: row for row in list_layers(checkpoint)}
    layers = tuple(
        WordsFor(
            weight=weight,
            module=_module(modules, rows[weight.name]),
            tensors=rows[weight.name].parts,
            format=parse_format(recipe[weight.name]) if weight.name in recipe else None,
        )
        for weight in weights
    )
    known = {layer.module for layer in layers if layer.module}
    return Words(
        checkpoint=checkpoint.name,
        model_type=str(checkpoint.config.get("model_type", "")),
        blocks=1 + max((weight.block for weight in weights), default=-1),
        layers=layers,
        others=tuple(name for name in modules.linear if name not in known),
    )


def _module(modules: Modules, row: DiskLayer) -> str:
    if row.role == "head":
        return modules.head
    if row.role == "experts":
        return modules.experts(row)
    return modules.by_tensor.get(row.parts[0], "")
