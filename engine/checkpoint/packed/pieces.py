"""Tensors that belong to one weight, by the endings of their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.four_bits import Array

FLOATS = ("float16", "bfloat16", "float32")
"""Dtypes that scales are stored in."""
HALVES = ("float16", "bfloat16")
"""Those of them that `engine.checkpoint.packed.four_bits` knows."""
E8M0 = ("uint8", "float8_e8m0fnu")
"""Those of scales that are powers of two."""


@dataclass(frozen=True)
class Pieces:
    """The tensors of one weight on disk."""

    checkpoint: Checkpoint
    prefix: str
    """Of the module: ``model.layers.0.mlp.up_proj``."""
    found: dict[str, TensorInfo]
    """By ending, codes first."""

    def __contains__(self, ending: str) -> bool:
        return ending in self.found

    def __getitem__(self, ending: str) -> TensorInfo:
        return self.found[ending]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, codes first."""
        return tuple(tensor.name for tensor in self.found.values())

    @property
    def bits(self) -> int:
        """Of all tensors."""
        return 8 * sum(tensor.bytes for tensor in self.found.values())

    @property
    def codes(self) -> TensorInfo:
        """The tensor of codes."""
        return next(iter(self.found.values()))

    def read(self, ending: str) -> Tensor:
        """One of the tensors, as stored."""
        return self.checkpoint.read(self.found[ending].name)

    def array(self, ending: str) -> Array:
        """The bits of one of the tensors, unsigned integers as wide; without torch."""
        return self.checkpoint.read_array(self.found[ending].name)

    def signed(self, ending: str) -> Array:
        """One of the tensors of signed integers; without torch."""
        found: Array = self.array(ending).view(self.found[ending].dtype)
        return found

    def check_index(self, ending: str, index: Array, inputs: int, groups: int) -> None:
        """Refuse an index that puts inputs into groups that do not exist.

        Raises:
            CheckpointError: names an input and its group.
        """
        name = self.found[ending].name
        if index.shape != (inputs,):
            raise self.unlike(ending, f"[{inputs}], the group of each input")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= groups:
            worst = low if low < 0 else high
            at = int((index == worst).argmax())
            raise self.refusal(
                f"{name!r} puts input {at} into group {worst} of {groups}; download or save it "
                "again"
            )

    def refusal(self, why: str) -> CheckpointError:
        """What is wrong with the weight, as an error that names its codes."""
        return CheckpointError(f"{self.codes.file} stores {self.codes.name!r}, but {why}")

    def unlike(self, ending: str, wanted: str) -> CheckpointError:
        """A piece whose dtype or shape cannot be."""
        found = self.found[ending]
        return self.refusal(
            f"{found.name!r} is {found.dtype} {list(found.shape)}, not {wanted}; download or save "
            "it again"
        )

    def expect(self, ending: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Refuse a piece in another dtype or shape.

        Raises:
            CheckpointError: names it, and what was expected.
        """
        found = self.found[ending]
        if found.dtype not in dtypes or (shapes and found.shape not in shapes):
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.unlike(ending, f"{' or '.join(dtypes)} {wanted}".strip())


def pieces_of(
    checkpoint: Checkpoint,
    codes: str,
    needed: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = (),
) -> Iterator[Pieces]:
    """The weights whose codes have this ending.

    Args:
        checkpoint: where to look.
        codes: the ending of the codes' names.
        needed: endings of other tensors that every weight has.
        optional: endings of those that it may have.
        dtypes: of the codes; any if empty. Others are passed over, which is quick.

    Raises:
        CheckpointError: names codes that lack a tensor they need.
    """
    tensors = checkpoint.tensors
    for name, tensor in tensors.items():
        if not name.endswith(codes) or (dtypes and tensor.dtype not in dtypes):
            continue
        prefix = name.removesuffix(codes)
        found = {codes: tensor}
        for ending in (*needed, *optional):
            if (beside := tensors.get(prefix + ending)) is not None:
                found[ending] = beside
            elif ending in needed:
                raise CheckpointError(
                    f"{tensor.file} stores {name!r} without its {ending.lstrip('.')!r}: no "
                    f"{prefix + ending!r} in {checkpoint.folder}; download or save it again"
                )
        yield Pieces(checkpoint, prefix, found)
