"""The importance of inputs from a file of llama.cpp, for ``+imatrix`` instead of calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint.imatrix import Imatrix, read_imatrix
from engine.checkpoint.llama_cpp_names import llama_cpp_names
from engine.errors import FormatError
from engine.formats.grammar import Format, needs_calibration, weighs_alone
from engine.measure.calibration.block_inputs import Events
from engine.store import keys
from engine.workspace import Loaded


@dataclass(frozen=True, eq=False)
class Importances:
    """A file, and the names that it has for a model's layers."""

    file: Path
    matrix: Imatrix
    names: Mapping[str, tuple[str, ...]]
    """llama.cpp's names by layer; none for a layer that it has no name for."""
    shapes: Mapping[str, tuple[int, ...]]
    """``[out, in]`` or ``[experts, out, in]`` by layer."""

    def of(self, layer: str) -> Tensor:
        """``E[x²]``, float32 ``[in]``, or ``[experts, in]``.

        Raises:
            FormatError: the file has none for this layer, or it does not fit; names the file.
        """
        names, shape = self.names.get(layer, ()), self.shapes[layer]
        for name in names:
            if (entry := self.matrix.entries.get(name)) is None:
                continue
            found = torch.from_numpy(np.ascontiguousarray(entry.importance))
            wanted = (shape[0] if len(shape) == 3 else 1, shape[-1])
            if tuple(found.shape) != wanted:
                # The older form does not say how many experts there are.
                if found.numel() != wanted[0] * wanted[1]:
                    raise FormatError(
                        f"{layer}: {self.file} has {found.numel()} values for {name}, and the "
                        f"layer {wanted[0] * wanted[1]}: was it made of another model?"
                    )
                found = found.reshape(wanted)
            return found if len(shape) == 3 else found[0]
        said = f"{' or '.join(names)}" if names else "it, for which llama.cpp has no name"
        raise FormatError(
            f"{layer}: {self.file} has no importance of {said}: leave '+imatrix' out for this "
            "layer, or take the importance from calibration text (without --imatrix)"
        )


def from_file(loaded: Loaded, fmt: Format) -> bool:
    """Whether a file has all that a format needs to know about inputs."""
    return loaded.settings.imatrix is not None and weighs_alone(fmt)


def gathers(loaded: Loaded, fmt: Format) -> bool:
    """Whether a format needs the calibration text."""
    return needs_calibration(fmt) and not from_file(loaded, fmt)


def need_importances(loaded: Loaded) -> Events[Importances | None]:
    """The file that the settings name, read and announced on first use; None if they name none.

    Raises:
        CheckpointError: it cannot be read; see `read_imatrix`.
        FormatError: llama.cpp has no names for the layers of this model.
    """
    if loaded.settings.imatrix is None:
        return None
    file = Path(loaded.settings.imatrix)
    if (known := loaded.find(Importances)) is not None:
        return known
    matrix = read_imatrix(file)
    found = loaded.part(Importances, lambda: _importances(loaded, file, matrix))
    count = sum(any(name in matrix.entries for name in of) for of in found.names.values())
    made = f", made with {', '.join(map(repr, matrix.datasets))}" if matrix.datasets else ""
    yield p.Notice("info", f"importance of the inputs of {count} layers from {file}{made}")
    yield p.Calibrated(
        text=file.name,
        text_sha256=matrix.sha256,
        tokens=matrix.tokens,
        seq_len=matrix.chunk_size,
        windows=matrix.chunks,
        seed=0,
    )
    return found


def key_of(found: Importances, key: keys.Calibration | None, mode: str) -> keys.Calibration:
    """The part of a key for figures that a file had a part in.

    Args:
        found: the file.
        key: of the calibration text, if there was any.
        mode: ``reference`` or ``sequential``.
    """
    hash = found.matrix.sha256
    if key is None:
        return keys.Calibration("", "", 0, 0, 0, "reference", hash)
    return keys.Calibration(key.text, key.windows, key.tokens, key.seq_len, key.seed, mode, hash)


def weighs(formats: Iterable[Format]) -> bool:
    """Whether a format has ``+imatrix``."""
    return any(method.name == "imatrix" for each in formats for method in each.methods)


def _importances(loaded: Loaded, file: Path, matrix: Imatrix) -> Importances:
    opened, network = loaded.opened, loaded.network
    names = gguf_names(loaded)
    if names is None:
        model = str(opened.checkpoint.config.get("model_type", ""))
        raise FormatError(
            f"{file}: the gguf package has no architecture {model!r}, so llama.cpp's names are not "
            "known: take the importance from calibration text (without --imatrix)"
        )
    return Importances(
        file, matrix, names, {name: layer.shape for name, layer in network.layers.items()}
    )


def gguf_names(loaded: Loaded) -> dict[str, tuple[str, ...]] | None:
    """llama.cpp's names of the weights of every layer; None for an architecture it has not."""
    network = loaded.network
    parts = {}
    for name, layer in network.layers.items():
        # Gate and up are one tensor in some checkpoints, and have the same inputs.
        both = [part for part in layer.disk if part.endswith("experts.gate_up_proj")]
        split = [part.replace("gate_up_proj", f"{kind}_proj") for part in both
                 for kind in ("gate", "up")]  # fmt: skip
        parts[name] = [*layer.disk, *split]
    model_type = str(loaded.opened.checkpoint.config.get("model_type", ""))
    found = llama_cpp_names(model_type, len(network.blocks), parts)
    if found is None:
        return None
    return {
        layer: tuple(name for name in of_layer if name is not None)
        for layer, of_layer in found.items()
    }
