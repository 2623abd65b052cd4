"""Writes a recipe as a GGUF file, tensor by tensor, and reads back what it wrote."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.checkpoint import DiskLayer, read_layer
from engine.checkpoint.gguf import open_gguf
from engine.errors import EngineError, FormatError
from engine.export.folder import atomic_file
from engine.export.gguf.plan import Plan, plan_of
from engine.export.load_check import NotReadBack, digest
from engine.export.recipe_file import check_file
from engine.export.refusal import some_of
from engine.export.target import target_named
from engine.export.tensor_groups import check_room
from engine.export.writer import Exported, Request
from engine.formats.grammar import Format, why_not_alone
from engine.ggml_types import NUMBERS
from engine.quant.gguf import GgufBlocks
from engine.quant.methods.gptq import Solved
from engine.quant.quantize import scale_dtype_for, stored_form

_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23,
    "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
"""``general.file_type`` by the type of most weights (``LlamaFileType``): a label for people."""
_ALIGNMENT = 32
_CHUNK = 1 << 24
_HEADER = 1 << 16
"""Bytes that a header takes beside its tokens, roughly, for the check of free space."""


class GgufFile:
    """The writer of ``--to gguf``."""

    def check(self, request: Request) -> None:
        """See `Writer`."""
        check_file(request.out, request.checkpoint.folder, overwrite=request.overwrite)
        self._plan(request, {}, [])

    @torch.no_grad()
    def write(self, request: Request) -> Exported:
        """Write the file: complete when this returns, removed on failure.

        With ``request.check`` every weight is read back before the file appears. One layer and its
        blocks are in memory at a time.

        Raises:
            NotReadBack: another weight is read than was measured; nothing is left.
            EngineError: see `Writer`.
        """
        out = Path(request.out).expanduser().absolute()
        check_file(out, request.checkpoint.folder, overwrite=request.overwrite)
        digests: dict[str, str] = {}
        notes: list[str] = []
        plan = self._plan(request, digests, notes)
        check_room(out.parent, plan.bytes + _HEADER)
        try:
            with atomic_file(out) as partial:
                _write(plan, partial, request)
                if request.check:
                    _read_back(plan, partial, request, digests)
                    notes.append(
                        "every weight was read back from the file and equals what was measured"
                    )
        except OSError as error:
            raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
        target = target_named("gguf")
        used = target.use.format(file=shlex.quote(str(out)))
        notes = [*plan.notes, *notes, used, target.differs]
        return Exported(out, plan.bytes, tuple(plan.quantised), tuple(dict.fromkeys(notes)))

    def _plan(self, request: Request, digests: dict[str, str], notes: list[str]) -> Plan:
        checkpoint = request.checkpoint
        scale_dtype = request.scale_dtype or scale_dtype_for(getattr(torch, checkpoint.dtype))

        def stored(row: DiskLayer, fmt: Format) -> Tensor:
            weight = read_layer(checkpoint, row).to(request.device)
            if not bool(weight.abs().amax().isfinite()):
                notes.append(f"{row.name} has NaN or infinite values: stored as 0")
            found = request.solved(row, fmt)
            if found is None and (why := why_not_alone(fmt)) is not None:
                raise FormatError(f"{row.name}: {why}, and its codes were not given")
            form = found.stored if isinstance(found, Solved) else found
            if form is None:
                form = stored_form(weight, fmt, scale_dtype, row.name)
            if not isinstance(form, GgufBlocks):
                raise FormatError(f"{row.name}: {fmt} is not stored in blocks of GGUF")
            if request.check:
                whole = form.approx()
                whole = whole.flatten(0, -2) if row.role == "experts" else whole
                digests[row.parts[0]] = _digest(whole, transposed=row.transposed)
            return form.blocks.cpu()

        return plan_of(checkpoint, request.recipe, stored, trusted=request.trust_remote_code)


def _digest(weight: Tensor, *, transposed: bool = False) -> str:
    """Of a weight as the checkpoint's tensor has it, in float32."""
    return digest((weight.T if transposed else weight).to(torch.float32).contiguous().cpu())


def _write(plan: Plan, path: Path, request: Request) -> None:
    logging.getLogger("gguf").setLevel(logging.ERROR)
    from gguf import GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(path, plan.architecture.name)
    _add_keys(writer, plan, request)
    for piece in plan.pieces:
        stored_as = GGMLQuantizationType(NUMBERS[piece.type])
        # The package takes shapes of bytes for uint8 alone; here it gets those of weights.
        writer.add_tensor_info(piece.name, piece.shape, "float32", piece.bytes, raw_dtype=stored_as)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(plan, writer.fout[0], request)
    finally:
        for stream in writer.fout or ():
            stream.close()


def _write_tensors(plan: Plan, stream: BinaryIO, request: Request) -> None:
    """The bytes of all tensors, each from a multiple of the alignment on."""
    done = 0
    for piece in plan.pieces:
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        made = piece.make().contiguous().cpu()
        raw = made.view(torch.uint8).numpy().reshape(-1).data
        if len(raw) != piece.bytes:
            raise AssertionError(f"{piece.name} takes {len(raw)} bytes, not {piece.bytes}")
        for start in range(0, len(raw), _CHUNK):
            request.on_progress(done, plan.bytes, piece.name)
            done += stream.write(raw[start : start + _CHUNK])
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    stream.flush()
    os.fsync(stream.fileno())
    request.on_progress(done, plan.bytes, "")


def _add_keys(writer: Any, plan: Plan, request: Request) -> None:
    sizes = Counter[str]()
    for piece in plan.pieces:
        sizes[piece.type] += piece.bytes
    writer.add_type("model")
    writer.add_name(request.checkpoint.name)
    writer.add_quantized_by("qtui")
    writer.add_quantization_version(2)
    writer.add_file_type(_FILE_TYPES.get(sizes.most_common(1)[0][0], 1))
    for key, value, add in plan.keys:
        getattr(writer, f"add_{add}")(key, value)


def _read_back(plan: Plan, path: Path, request: Request, digests: Mapping[str, str]) -> None:
    """Read every weight by its place in the file, and compare it with the measured or kept one."""
    found, wrong = open_gguf(path), []
    names: dict[str, str] = {}
    layers = {parts[0]: parts for parts in plan.quantised.values()}
    covered = {part for parts in layers.values() for part in parts[1:]}
    for piece in plan.pieces:
        names |= zip(
            piece.sources, plan.architecture.disk_names(piece.name, len(piece.sources)), strict=True
        )
    for piece in plan.pieces:
        for source in piece.sources:
            if source in covered:  # read with the first part of its layer
                continue
            request.on_progress(0, 0, f"reading back {source}")
            read = [found.read(names[part]) for part in layers.get(source, (source,))]
            whole = read[0] if len(read) == 1 else torch.cat(read)
            expected = digests.get(source)
            if expected is None:
                kept = request.checkpoint.read(source)
                if plan.architecture.change(piece.name) == "plus one":  # all that the model uses
                    whole, kept = whole.float() + 1, kept.float() + 1
                expected = _digest(kept.to(whole.dtype))
            if _digest(whole) != expected:
                wrong.append(source)
    if wrong:
        raise NotReadBack(f"other weights are read than were measured for {some_of(wrong)}")


WRITER = GgufFile()
