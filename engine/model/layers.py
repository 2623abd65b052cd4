"""The layers of a model: every weight that can be quantised on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.checkpoint import is_other_sense
from engine.model.blocks import decoder_of
from engine.model.torch_internals import own_parameters
from engine.model.transformers_internals import TRANSPOSED_EXPERTS, transposed_linear
from engine.protocol import Role

EXPERT_TENSORS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layer:
    """One quantisable weight."""

    name: str
    """The checkpoint's own name, as on disk, without ``.weight``. A tied head absent there is
    ``lm_head``; a tensor fused on load has its name in the model."""
    kind: str
    """The last part of the name: ``q_proj``, ``gate_up_proj``, ``c_attn``, ``lm_head``."""
    block: int | None
    """Index of its block; None for embedding, head and what else stands outside."""
    role: Role
    shape: tuple[int, ...]
    """[out, in] or [experts, out, in], however it is stored."""
    modules: tuple[str, ...]
    """Its names in the model: the module's, for experts the parameter's; several where blocks share
    the weight."""
    disk: tuple[str, ...]
    """The tensors on disk it is made from; none for a tied head."""
    uses: tuple[int, ...]
    """The regions that a change of it reaches directly, in order: -1 before the blocks, a block's
    number, the number of blocks after them. By name until `engine.model.uses` has found them by
    running the model."""

    @property
    def module(self) -> str:
        """Its first name in the model."""
        return self.modules[0]

    @property
    def start(self) -> int:
        """The first region it acts in: the block whose input is enough to measure a change of it;
        -1 where the whole forward is needed."""
        return self.uses[0]

    @property
    def last(self) -> int:
        """The last region it acts in: beyond it, the reference weight does as well."""
        return self.uses[-1]

    def acts_in(self, regions: range) -> bool:
        """Whether it acts in any of these regions."""
        return any(at in regions for at in self.uses)

    @property
    def repeated(self) -> bool:
        """Whether several blocks compute with it: with one stored tensor, each on its own input."""
        return len(self.modules) > 1 and len(self.uses) > 1


class Slot(NamedTuple):
    """Where a layer's weight is in the model."""

    owner: nn.Module
    attribute: str
    turned: bool
    """Stored as [in, out] or [experts, in, out]."""

    @property
    def parameter(self) -> nn.Parameter:
        found = own_parameters(self.owner)[self.attribute]
        assert found is not None
        return found

    def oriented(self, tensor: Tensor) -> Tensor:
        """Stored to out × in, or back: a view."""
        return tensor.transpose(-1, -2) if self.turned else tensor


def list_layers(
    model: Any, blocks_name: str, n_blocks: int, made_from: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[Layer, tuple[Slot, ...]]]:
    """All layers with their slots, in the model's order: embedding, blocks, head.

    A layer is a stored tensor: modules that share one are slots of one layer, named after the one
    that is on disk.

    Args:
        blocks_name: the name of the ModuleList of blocks in the model.
        made_from: the disk names of every ``state_dict`` key.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    sharing: dict[tuple[int, bool], list[tuple[str, Role, Slot]]] = {}
    for path, role, slot in _slots(model, embedding, head):
        # A head that is tied to the embedding is a layer of its own.
        sharing.setdefault((id(slot.parameter), role == "head"), []).append((path, role, slot))
    order = {"embedding": 0, "head": 2}
    found = sorted(sharing.values(), key=lambda members: order.get(members[0][1], 1))

    parts: dict[str, int] = {}
    for names in made_from.values():
        for name in names:
            parts[name] = parts.get(name, 0) + 1

    layers: dict[str, tuple[Layer, tuple[Slot, ...]]] = {}
    for members in found:
        # stable: the first of those that are on disk, or else the first
        members = sorted(members, key=lambda member: not made_from.get(_key(*member)))
        path, role, slot = members[0]
        disk = made_from.get(_key(path, role, slot), ())
        if len(disk) == 1 and parts[disk[0]] == 1:
            name = disk[0].removesuffix(".weight")
        else:
            name = "lm_head" if role == "head" and not disk else path
        outside = n_blocks if role == "head" else -1
        blocks = [_block_of(each, blocks_name) for each, _role, _slot in members]
        uses = sorted({outside if block is None else block for block in blocks})
        layers[name] = (
            Layer(
                name,
                name.split(".")[-1],
                blocks[0],
                role,
                tuple(slot.oriented(slot.parameter).shape),
                tuple(dict.fromkeys(each for each, _role, _slot in members)),
                disk,
                tuple(uses),
            ),
            tuple({(id(s.owner), s.attribute): s for _path, _role, s in members}.values()),
        )
    return layers


def _key(path: str, role: Role, slot: Slot) -> str:
    """The name of a slot's tensor in the ``state_dict``."""
    return path if role == "experts" else f"{path}.{slot.attribute}"


def _slots(model: Any, embedding: Any, head: Any) -> Iterator[tuple[str, Role, Slot]]:
    transposed = transposed_linear()
    root = decoder_of(model)
    decoder = {
        id(module)
        for path, module in root.named_modules()
        if not is_other_sense(path.split(".")[:-1])
    }
    routers: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):  # blocks may share modules
        if module is embedding:
            yield path, "embedding", Slot(module, "weight", False)
        elif module is head and isinstance(getattr(head, "weight", None), nn.Parameter):
            yield path, "head", Slot(module, "weight", False)
        elif id(module) not in decoder:
            continue  # a vision or audio tower
        elif path.startswith(routers) or _is_router(model, path, module):
            routers = (*routers, f"{path}.")
        elif isinstance(module, nn.Linear):
            yield path, "linear", Slot(module, "weight", False)
        elif isinstance(module, transposed):
            yield path, "conv1d", Slot(module, "weight", True)
        else:
            yield from _experts(path, module)


def _experts(path: str, module: nn.Module) -> Iterator[tuple[str, Role, Slot]]:
    kind = type(module).__name__
    if not hasattr(module, "is_transposed") and not kind.endswith("Experts"):
        return
    turned = bool(getattr(module, "is_transposed", kind in TRANSPOSED_EXPERTS))
    wanted = ("weight",) if kind.endswith("ParallelExperts") else EXPERT_TENSORS
    for attribute, parameter in module.named_parameters(recurse=False):
        if attribute in wanted and parameter.dim() == 3:
            yield f"{path}.{attribute}", "experts", Slot(module, attribute, turned)


def _is_router(model: Any, path: str, module: nn.Module) -> bool:
    kind, last = type(module).__name__, path.split(".")[-1]
    if kind.endswith(("Router", "Gating")):  # Moshi's whole MLP is a MoshiGatingMLP
        return True
    if last == "gate":  # a linear map, or a module around it
        return hasattr(model.get_submodule(path.rpartition(".")[0]), "experts")
    if not isinstance(module, nn.Linear):
        return False
    return last.endswith("router") or last in ("shared_expert_gate", "router_gate")


def _block_of(path: str, blocks_name: str) -> int | None:
    prefix = f"{blocks_name}."
    if not path.startswith(prefix):
        return None
    return int(path.removeprefix(prefix).split(".")[0])
