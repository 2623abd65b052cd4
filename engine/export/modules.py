"""The modules of a checkpoint's model, from its config: which can be quantised, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from engine.checkpoint import Checkpoint, DiskLayer
from engine.errors import CheckpointError
from engine.model.config import model_class, read_config
from engine.model.names import converted_weights, join_names
from engine.model.quiet import quiet
from engine.model.transformers_internals import computed_keys


@dataclass(frozen=True)
class Modules:
    """Modules of a model as named in transformers, which may differ from the names on disk."""

    by_tensor: Mapping[str, str]
    """Module name by the weight's name on disk, if one tensor is one weight."""
    kinds: Mapping[str, type[nn.Module]]
    head: str
    """The output embedding."""
    merged: Mapping[str, str]
    """Parameter by name on disk, of matrices that transformers merges when it loads them."""
    converted: frozenset[str] = frozenset()
    """Weights on disk that transformers merges, splits or turns when it loads them."""
    shared: frozenset[str] = frozenset()
    """Modules that have one stored weight with others, but for a head tied to the embedding."""
    part_of: Mapping[str, str] = field(default_factory=dict)
    """The name on disk of the tensor that transformers splits a module's weight from."""

    @property
    def linear(self) -> list[str]:
        """All linear modules."""
        return [name for name, kind in self.kinds.items() if issubclass(kind, nn.Linear)]

    def module(self, row: DiskLayer) -> str:
        """The module of a layer."""
        return self.head if row.role == "head" else self.by_tensor[row.parts[0]]

    def experts(self, row: DiskLayer) -> str:
        """The parameter of a layer of experts; empty where no merge makes it."""
        found = {self.merged.get(part, "") for part in row.parts}
        return found.pop() if len(found) == 1 else ""

    def why_not_quantised(self, row: DiskLayer, tool: str = "compressed-tensors") -> str | None:
        """Why a tool cannot quantise the layer's module; None if it can.

        Compressed-tensors supports ``nn.Linear`` and ``nn.Embedding`` and their subclasses; but
        transformers does not load an embedding without a ``weight``. Experts it merges from codes
        of each.
        """
        if row.role == "experts":
            if self.experts(row) and not row.transposed:
                return None
            return f"the experts are one tensor on disk, and {tool} quantises linear modules only"
        if row.role == "conv1d":
            return f"it is a transposed Conv1D, and {tool} quantises linear modules only"
        name = self.head if row.role == "head" else self.by_tensor.get(row.parts[0], "")
        kind = self.kinds.get(name)
        if kind is None:
            return "transformers has no module for this tensor alone"
        if name in self.shared:
            return (
                "several blocks share its weight, and transformers cannot load a shared weight "
                "that is stored as codes"
            )
        if issubclass(kind, nn.Embedding):
            return "transformers cannot load an embedding stored as codes"
        if not issubclass(kind, nn.Linear):
            return f"it is a {kind.__name__}, and {tool} quantises linear modules only"
        return None


def read_modules(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Modules:
    """Build the checkpoint's model without weights, and list its modules.

    Raises:
        CheckpointError: transformers cannot build a model from the config.
    """
    with quiet():
        config = read_config(checkpoint, trust_remote_code=trust_remote_code)
        found, config = model_class(checkpoint.folder, config, trust_remote_code=trust_remote_code)
        try:
            with torch.device("meta"):
                model = found(config)
        except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'} does not describe a model that can be "
                f"built: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        made_from = join_names(model, checkpoint.tensors)
    kinds = {name: type(module) for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    by_tensor = {
        sources[0]: key.removesuffix(".weight")
        for key, sources in made_from.items()
        if len(sources) == 1 and key.endswith(".weight")
    }
    merged = {
        source: key
        for key, sources in made_from.items()
        if len(sources) > 1 and all(source.endswith(".weight") for source in sources)
        for source in sources
    }
    makes: dict[str, list[str]] = {}
    for key, sources in made_from.items():
        for source in sources:
            makes.setdefault(source, []).append(key)
    part_of = {
        key.removesuffix(".weight"): source
        for source, keys in makes.items()
        for key in keys
        if len(keys) > 1
    }
    ends = {
        name for module in (head, model.get_input_embeddings()) if (name := names.get(id(module)))
    }
    pairs = [
        [key.removesuffix(".weight") for key in pair] for pair in computed_keys(model)[0].items()
    ]
    return Modules(
        MappingProxyType(by_tensor),
        MappingProxyType(kinds),
        names.get(id(head), "lm_head"),
        MappingProxyType(merged),
        converted_weights(model, checkpoint.tensors),
        frozenset(name for pair in pairs if not ends.issuperset(pair) for name in pair),
        MappingProxyType(part_of),
    )
