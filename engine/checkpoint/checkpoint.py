"""A checkpoint folder: its config, and its tensors over all shards, read one at a time.

Opening reads only headers, so the layer table is complete before any weights are read, whatever the
size. Tensors are read with plain file reads, not through a memory map: a file that is truncated
while we read it is then an error that names it, not a bus error.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.checkpoint import pickles
from engine.checkpoint.config_sizes import check_sizes
from engine.checkpoint.files import check_file, is_there
from engine.checkpoint.headers import TensorInfo, read_header
from engine.checkpoint.json_files import read_object
from engine.checkpoint.other_formats import refuse_other_formats
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from engine.checkpoint.weight import Codes, QuantisedWeight

WHOLE = 256 * 2**20
"""Files up to this many bytes are hashed in full for the fingerprint."""
SAMPLES, SAMPLE = 64, 4096
"""Of larger files this many evenly spaced samples of this many bytes are hashed."""

DECLARED_BESIDE = ("quantize_config.json", "quant_config.json")
"""Where the first tools of GPTQ and AWQ put what now is ``quantization_config``."""

_BUFFER = re.compile(r"(\.attn\.(masked_)?bias|\.inv_freq)$")


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, opened and checked; created by `open_folder`.

    ``tensors`` are in the order of shards and offsets. ``pickled`` means that the weights are
    ``.bin`` files, in which a tensor may have no place of its own: its offset is 0 then.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[Path, ...]
    pickled: bool = False
    follow_links: bool = False
    """Whether files may be links to anywhere."""
    _config_sha256: str = field(default="", repr=False)
    quantised: dict[str, QuantisedWeight] = field(default_factory=dict, repr=False)
    """Weights that are made of several tensors on disk, by name. In ``tensors`` each has the name,
    the shape and the dtype of the weight, and the bytes of all its pieces."""

    @property
    def config_file(self) -> Path:
        """The file that the config comes from."""
        return self.folder / "config.json"

    @property
    def container(self) -> str:
        """What the weights are stored in, if not as transformers saves them; else empty."""
        return ""

    @property
    def dequantised(self) -> str:
        """What is dequantised by the container itself, in words; empty if nothing is."""
        return ""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of floating-point parameters; an mxfp4 byte holds two.

        Excludes the masks and tables that old files contain.
        """
        packed = (t for t in self.tensors.values() if t.name.endswith("_blocks"))
        halves = sum(2 * t.elements for t in packed if t.dtype == "uint8")
        return halves + sum(tensor.elements for tensor in self._weights)

    @property
    def dtype(self) -> str:
        """The dtype that most of the weights are stored in, by torch's name."""
        counts = Counter[str]()
        for tensor in self._weights or list(self.tensors.values()):
            counts[tensor.dtype] += tensor.elements
        return counts.most_common(1)[0][0]

    @property
    def _weights(self) -> list[TensorInfo]:
        return [
            tensor
            for name, tensor in self.tensors.items()
            if "float" in tensor.dtype
            and not (_BUFFER.search(name) and len(tensor.shape) in (0, 1, 4))
        ]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ``config.json`` and every weight file, in hexadecimal.

        The folder's path is not included. A file above ``WHOLE`` bytes is represented by its
        header, size, modification time and ``SAMPLES`` evenly spaced samples. Editing such a file
        in place and resetting its time would go unnoticed.
        """
        total = hashlib.sha256(self._config_sha256.encode())
        for file in sorted(self.files, key=self._relative):
            total.update(self._relative(file).encode("utf-8", "surrogateescape") + b"\0")
            try:
                total.update(file_digest(file))
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        for file in self._declared_beside():
            try:
                total.update(file.name.encode() + b"\0" + file_digest(file))
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        return total.hexdigest()

    def _declared_beside(self) -> list[Path]:
        """Files that say how weights are stored, where ``config.json`` does not."""
        if isinstance(self.config.get("quantization_config"), dict):
            return []
        beside = (self.folder / name for name in DECLARED_BESIDE)
        return [file for file in beside if is_there(file) and file.is_file()]

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def as_stored(self, name: str) -> bool:
        """Whether the bytes on disk are the tensor ``name`` that `read` returns."""
        return not self.pickled

    def read(self, name: str) -> Tensor:
        """Tensor ``name`` as stored, copied to CPU memory; dequantised if it is `quantised`.

        Raises:
            CheckpointError: no such tensor, or its file has changed since it was opened.
        """
        if (weight := self.quantised.get(name)) is not None:
            return weight.read()
        found = self._find(name)
        return self._read(found, found.start, found.end, found.shape)

    def read_rows(self, name: str, a: int, b: int) -> Tensor:
        """Rows ``a`` to ``b`` (exclusive) of the first dimension of tensor ``name``."""
        found = self._find(name)
        if not found.shape or not 0 <= a <= b <= found.shape[0]:
            raise CheckpointError(
                f"{found.file} has no rows {a}:{b} in {name!r} of shape {list(found.shape)}"
            )
        if (weight := self.quantised.get(name)) is not None:
            return weight.read_rows(a, b)
        row = found.bytes // found.shape[0] if found.shape[0] else 0
        start = found.start + a * row
        return self._read(found, start, start + (b - a) * row, (b - a, *found.shape[1:]))

    def read_array(self, name: str, first: int | None = None) -> NDArray[Any]:
        """The bits of tensor ``name`` as stored, as unsigned integers; only pickles need torch.

        Args:
            name: of the tensor, which is none of the `quantised` weights.
            first: how many rows of its first dimension; all if None.

        Raises:
            CheckpointError: no such tensor, or its file has changed since it was opened.
        """
        import numpy as np

        found = self._find(name)
        shape = found.shape if first is None else (min(first, found.shape[0]), *found.shape[1:])
        each = found.bytes // max(1, found.elements)
        if self.pickled:
            import torch

            whole = self._read(found, found.start, found.end, found.shape)[: first or None]
            raw = whole.contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            raw = np.empty(prod(shape) * each, np.uint8)
            self.fill(found, found.start, raw.data)
        return raw.view(f"uint{8 * each}").reshape(shape)

    def codes(self, name: str) -> Iterator[Codes]:
        """Codes and scales of a tensor that the container itself stores quantised, in parts."""
        return iter(())

    def fill(self, found: TensorInfo, start: int, room: memoryview) -> None:
        """Read bytes of a tensor's file from offset ``start`` on, until ``room`` is full.

        Raises:
            CheckpointError: the file ends before, or cannot be read.
        """
        try:
            with found.file.open("rb", buffering=0) as stream:
                stream.seek(start)
                _fill(stream, room)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{found.file} ends within {found.name!r} or cannot be read ({error}); "
                "it changed after it was opened: open it again"
            ) from error

    def _find(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}") from None

    def _read(self, found: TensorInfo, start: int, end: int, shape: tuple[int, ...]) -> Tensor:
        import torch

        if self.pickled and not found.start:
            row = found.bytes // found.shape[0] if found.shape and found.shape[0] else 0
            whole = pickles.load(found.file)[found.name]
            if shape != found.shape:
                first = (start - found.start) // row if row else 0
                whole = whole[first : first + shape[0]]
            return whole.detach().to("cpu", copy=True).contiguous()
        raw = torch.empty(end - start, dtype=torch.uint8)
        self.fill(found, start, raw.numpy().data)
        return raw.view(getattr(torch, found.dtype)).reshape(shape)


def _fill(stream: BinaryIO, room: memoryview) -> None:
    """Read until ``room`` is full; one system call may return less than requested."""
    while room:
        got = stream.readinto(room)  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"{len(room)} bytes missing")
        room = room[got:]


def file_digest(file: Path, header: int = 0) -> bytes:
    """SHA-256 of a file: in full, or of a large one its size, time, header and samples.

    Args:
        file: the file.
        header: bytes of its header; 0 for the header of safetensors, if it is one.
    """
    with file.open("rb") as stream:
        status = file.stat()
        if status.st_size <= WHOLE:
            return hashlib.file_digest(stream, "sha256").digest()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        if header:
            digest.update(stream.read(header))
        elif file.suffix == ".safetensors":
            digest.update(stream.read(8 + int.from_bytes(stream.read(8), "little")))
        for i in range(SAMPLES):
            stream.seek((status.st_size - SAMPLE) * i // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE))
        return digest.digest()


def open_stored(folder: Path, *, follow_links: bool = False) -> Checkpoint:
    """Open the checkpoint in ``folder`` with its tensors as they are stored.

    See `engine.checkpoint.open_checkpoint`, which gives quantised weights their own names.

    Raises:
        CheckpointError: something is missing, truncated, contradictory or unsafe; names it.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist; give a folder with a checkpoint")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it")
    config, config_sha256 = read_config(folder, follow_links=follow_links)
    shards, claimed, pickled = find_weights(folder, follow_links=follow_links)
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, tensor in (pickles.listing(shard) if pickled else read_header(shard)).items():
            if name in tensors:
                raise CheckpointError(
                    f"{shard} stores {name!r}, which {tensors[name].file.name} stores too; "
                    "remove one of them"
                )
            tensors[name] = tensor
    for name, shard_name in claimed.items():
        if name not in tensors or tensors[name].file != folder / shard_name:
            raise CheckpointError(
                f"{folder / shard_name} does not hold {name!r}, although the index lists it there; "
                "download the index and this shard again"
            )
    if not tensors:
        raise CheckpointError(f"{shards[0]} holds no tensors; download or save it again")
    check_sizes(folder / "config.json", config, tensors)
    return Checkpoint(
        folder,
        _name(folder),
        config,
        tensors,
        tuple(shards),
        pickled,
        follow_links,
        config_sha256,
    )


def _name(folder: Path) -> str:
    """The folder's name, or ``owner/model`` for a folder of the hub's cache."""
    real = folder.resolve()
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        return real.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name or real.name


def read_config(folder: Path, *, follow_links: bool = False) -> tuple[dict[str, Any], str]:
    """The contents of ``config.json``, and the SHA-256 of its bytes.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    file = folder / "config.json"
    if not is_there(file):
        refuse_other_formats(folder)
        raise CheckpointError(f"{file} is missing; give a folder as saved by transformers")
    return read_object(folder, file, follow=follow_links)


def find_weights(
    folder: Path, *, follow_links: bool = False
) -> tuple[list[Path], dict[str, str], bool]:
    """Weight files, the index's claims (tensor → file name), and whether they are pickles.

    Raises:
        CheckpointError: there are none, or one is missing or outside of the folder.
    """
    for name, pickled in (("model.safetensors", False), ("pytorch_model.bin", True)):
        file, index = folder / name, folder / f"{name}.index.json"
        if is_there(file):
            check_file(folder, file, follow=follow_links)
            return [file], {}, pickled
        if is_there(index):
            claimed = _read_index(folder, index, follow_links)
            shards = [
                _shard(folder, index, shard, follow_links)
                for shard in sorted(set(claimed.values()))
            ]
            return shards, claimed, pickled
    refuse_other_formats(folder)
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    if loose:
        raise CheckpointError(
            f"{folder} holds {loose[0]} but neither model.safetensors nor "
            "model.safetensors.index.json; rename the file or download the index"
        )
    raise CheckpointError(
        f"{folder} holds no weights: no model.safetensors, no model.safetensors.index.json and "
        "no pytorch_model.bin; finish the download"
    )


def _read_index(folder: Path, index: Path, follow_links: bool) -> dict[str, str]:
    found, _ = read_object(folder, index, follow=follow_links, unique=True)
    weight_map = found.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download or save it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index} gives {name!r} the shard {shard!r}, not a file name")
    return weight_map


def _shard(folder: Path, index: Path, name: str, follow_links: bool) -> Path:
    """The path of a shard named in an index, which must not lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or re.search(r'[\\\0:*?"<>|]', name):
        raise CheckpointError(
            f"{index} names the shard {name!r}, which is not a file inside the folder; "
            "do not trust this checkpoint"
        )
    file = folder / name
    try:
        present = is_there(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} names the shard {name!r}: {error}") from error
    if not present:
        raise CheckpointError(
            f"{file} is missing, though {index.name} names it; finish the download"
        )
    check_file(folder, file, follow=follow_links)
    return file
