"""Reads parameters of a model from its checkpoint, some at a time, as loading all of them would.

Names are renamed, tensors fused, split and cast by transformers' own loader, on a copy of the model
without values, so that what is read is equal to the last bit to what a resident model holds. Files
are opened for one tensor and closed again: neither handles nor mappings are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.checkpoint_tensors import LazyTensor
from engine.model.quiet import quiet
from engine.model.torch_internals import own_parameters
from engine.model.transformers_internals import fill

Mend = Callable[[Mapping[str, Tensor]], tuple[str, ...]]
"""Checks values by key in the model, and replaces those that are not finite; says which."""


class _Stamp(NamedTuple):
    """What tells whether a file is still the one that was opened."""

    size: int
    modified: int
    inode: int


class BlockReader:
    """Parameters of one model, read when they are asked for.

    Args:
        skeleton: the model with parameters on the meta device.
        sources: by key of its ``state_dict``, the tensors that it is made from.
        tensors: of the checkpoint, by those names.
        files: that they are read from, as they are when the reader is made.
        mend: is given all values when they are read for the first time, and afterwards those that
            it had to mend.
    """

    def __init__(
        self,
        skeleton: Any,
        sources: Mapping[str, tuple[str, ...]],
        tensors: Mapping[str, LazyTensor],
        files: Iterable[Path],
        mend: Mend = lambda _values: (),
    ) -> None:
        self._skeleton, self._sources, self._tensors = skeleton, dict(sources), tensors
        self._files = {file: _stamp(file) for file in files}
        self._mend, self._seen, self._mended = mend, set[str](), set[str]()
        self._lock = Lock()
        self.said: list[str] = []
        """Sentences about values that were mended."""

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Values of parameters in CPU memory, by their keys. May be called from any thread.

        Raises:
            CheckpointError: a file is not as it was, or cannot be read.
            UsageError: a value on disk is beyond the dtype that is computed in.
        """
        keys = list(keys)
        names = {name for key in keys for name in self._sources[key]}
        with self._lock, quiet(), torch.no_grad():
            self._refuse_changed()
            places = {key: self._place(key) for key in keys}
            empty = {key: own_parameters(module)[name] for key, (module, name) in places.items()}
            try:
                fill(self._skeleton, {name: self._tensors[name] for name in names})
                found = {}
                for key, (module, name) in places.items():
                    parameter = own_parameters(module)[name]
                    if parameter is None or parameter.is_meta:
                        raise CheckpointError(f"{key} was not read from the checkpoint")
                    found[key] = parameter.detach()
            finally:
                for key, (module, name) in places.items():
                    own_parameters(module)[name] = empty[key]
            self._refuse_changed()
            doubtful = {k: v for k, v in found.items() if k not in self._seen or k in self._mended}
            self._check(doubtful)
        return found

    def _check(self, values: Mapping[str, Tensor]) -> None:
        for key, value in values.items():
            said = self._mend({key: value})
            if said and key not in self._mended:
                self._mended.add(key)
                self.said += said
            self._seen.add(key)

    def _place(self, key: str) -> tuple[Any, str]:
        module, _, name = key.rpartition(".")
        return self._skeleton.get_submodule(module), name

    def _refuse_changed(self) -> None:
        for file, before in self._files.items():
            try:
                now: _Stamp | None = _stamp(file)
            except OSError:
                now = None
            if now != before:
                what = "is gone" if now is None else "is another file or was written to"
                raise CheckpointError(
                    f"{file} {what} since the checkpoint was opened, and its blocks are read from "
                    "it while they are measured: open the checkpoint again; what was measured so "
                    "far is saved"
                )


def _stamp(file: Path) -> _Stamp:
    status = os.stat(file)
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
