"""Loads a folder into a `Network`: config, device, dtype, memory, weights, names, self-check."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from engine.checkpoint import Checkpoint, open_checkpoint
from engine.checkpoint.gguf import is_gguf, open_gguf
from engine.checkpoint.links import refuse_pointer
from engine.errors import (
    CheckpointError,
    EngineError,
    OutOfMemoryError,
    TextError,
    UsageError,
    few,
    is_out_of_memory,
)
from engine.model.beside import check_beside
from engine.model.blocks import find_blocks
from engine.model.checkpoint_tensors import CheckpointTensors, checkpoint_tensors
from engine.model.config import model_class, read_config
from engine.model.exact_products import use_exact_products
from engine.model.memory import check_memory, memory_free, memory_needed, size_of
from engine.model.names import check_covered, join_names
from engine.model.network import Network
from engine.model.quiet import quiet
from engine.model.selfcheck import check_resuming
from engine.model.source import resolve_model
from engine.model.streamed_blocks import StreamedBlocks
from engine.model.streamed_check import check_streamed
from engine.model.streaming import (
    RESIDENT,
    CannotStream,
    fits,
    is_tied,
    least_memory,
    load_around_blocks,
    never_tied,
    reads_around,
    refuse_unstreamable,
    without_weights,
)
from engine.model.transformers_internals import computed_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "LoadStage",
    "choose_device",
    "choose_dtype",
    "load_network",
    "load_tokenizer",
    "resolve_model",
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


class LoadStage(NamedTuple):
    """Progress of loading."""

    name: str
    """``reading config``, ``building the model``, ``loading weights`` or ``checking resume``."""
    done: int
    total: int
    in_bytes: bool = False


OnStage = Callable[[LoadStage], None]


def load_network(
    path: Path,
    *,
    checkpoint: Checkpoint | None = None,
    device: str = "auto",
    dtype: str | None = None,
    budget: int | None = None,
    trust_remote_code: bool = False,
    follow_links: bool = False,
    on_stage: OnStage = lambda _stage: None,
) -> Network:
    """Loads the checkpoint in folder ``path``, or its files that are open as ``checkpoint``.

    If its weights do not fit in free memory, or in a ``budget`` of bytes, its blocks are streamed
    from disk, unless the model is one that cannot be (see `engine.model.streaming`).

    ``on_stage`` is called with the progress. While weights are read it is called from the threads
    that read them, one call at a time; raising there abandons the loading.

    Raises:
        CheckpointError: the checkpoint cannot be read; file or tensor is named.
        UsageError: the device or dtype is not available.
        OutOfMemoryError: it does not fit.
    """
    on_stage(LoadStage("reading config", 0, 1))
    if checkpoint is None:
        checkpoint = open_checkpoint(path, follow_links=follow_links)
    with quiet():
        config = read_config(checkpoint, trust_remote_code=trust_remote_code)
    stored = checkpoint_tensors(checkpoint, _dequantised(config))
    chosen_device, why_device = choose_device(device)
    chosen_dtype, why_dtype = choose_dtype(dtype, stored.dtype, chosen_device)
    with quiet():
        loaded_class, config = model_class(path, config, trust_remote_code=trust_remote_code)
    on_stage(LoadStage("reading config", 1, 1))
    if chosen_device != "cpu":
        use_exact_products()

    what = f"loading {path.name} in {chosen_dtype}".replace("torch.", "")
    shapes = [tensor.shape for tensor in stored.tensors.values()]
    needed = memory_needed([*shapes, *_untied_shape(config)], chosen_dtype)
    one = _Loading(
        path, checkpoint, stored, loaded_class, config, chosen_device, chosen_dtype, on_stage
    )
    notes = (why_device, why_dtype, *((stored.note,) if stored.note else ()))
    free = memory_free(chosen_device)
    try:
        if not fits(needed, free, budget):
            try:
                return _streamed(one, notes, needed, budget)
            except CannotStream as why:
                if needed > free:
                    what += f", which cannot be streamed from disk ({why}),"
                else:
                    notes += (_not_streamed(needed, budget, why),)
        check_memory(needed, free, chosen_device, what=what)
        return _resident(one, notes)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise _too_big(what, needed, chosen_device) from error
        raise


class _Loading(NamedTuple):
    """What is to be loaded, and where to."""

    path: Path
    checkpoint: Checkpoint
    stored: CheckpointTensors
    loaded_class: Any
    config: Any
    device: str
    dtype: torch.dtype
    on_stage: OnStage


def _resident(one: _Loading, notes: tuple[str, ...]) -> Network:
    """Load all weights."""
    one.on_stage(LoadStage("building the model", 0, 1))

    def read(done: int, total: int) -> None:
        size = one.dtype.itemsize
        one.on_stage(LoadStage("loading weights", done * size, total * size, True))

    model, report = _build(one, one.config, one.stored.counted(read))
    notes += _unread_note(_check_report(one.path, model, report))
    tied = _untie_head(model)
    model.to(one.device)
    made_from = _disk_names(model, one.stored)
    one.on_stage(LoadStage("checking resume", 0, 1))
    parameters = dict(model.named_parameters())
    _check_range(one, made_from, parameters)
    zeroed = _zero_what_is_not_finite(parameters)
    network = Network(model, made_from, tied=tied, notes=notes, zeroed=zeroed)
    check_resuming(network)
    one.on_stage(LoadStage("checking resume", 1, 1))
    return network


def _streamed(one: _Loading, notes: tuple[str, ...], needed: int, budget: int | None) -> Network:
    """Load what is outside of blocks; these are read when they run.

    Raises:
        CannotStream: this model's cannot.
    """
    one.on_stage(LoadStage("building the model", 0, 1))
    config = copy.deepcopy(one.config)  # it is the model's, and changed with it
    model, report = without_weights(lambda tensors: _build(one, config, tensors), one.stored)
    notes += _unread_note(_check_report(one.path, model, report))
    what = f"streaming {one.path.name} in {one.dtype} from disk".replace("torch.", "")
    refuse_unstreamable(model, one.checkpoint, one.stored)
    free = memory_free(one.device)
    room = free if budget is None else min(free, budget)
    # Read like blocks they cost time at every pass, so that they are kept where that is cheap.
    outside = least_memory(model) > room // 2 and reads_around(model, one.stored)
    check_memory(least_memory(model, outside=outside), free, one.device, what=what)
    made_from = _disk_names(model, one.stored)

    def mend(values: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
        _check_range(one, made_from, values)
        return _zero_what_is_not_finite(values)

    tied = outside and is_tied(model)
    source = load_around_blocks(
        model, one.checkpoint, one.stored, one.device, mend, outside=outside
    )
    tied = _untie_head(model) or tied
    blocks = source(find_blocks(model)[1])
    inside = {id(p) for module in blocks.modules for p in module.parameters()}
    inside |= set(map(id, blocks.around))
    said = mend({name: p for name, p in model.named_parameters() if id(p) not in inside})
    network = Network(model, made_from, tied=tied, source=lambda _modules: blocks)
    one.on_stage(LoadStage("checking resume", 0, 1))
    try:
        check_streamed(network)
    except (CannotStream, EngineError):
        if not blocks.outside:
            raise
        blocks.keep_around()  # such as a table that is used without being called
        check_streamed(network)
    one.on_stage(LoadStage("checking resume", 1, 1))
    network.zeroed = (*said, *blocks.reader.said)
    network.notes = (*notes, _streamed_note(network, blocks, needed, budget))
    return network


def _unread_note(unread: list[str]) -> tuple[str, ...]:
    if not unread:
        return ()
    return (f"{len(unread)} tensors on disk are not part of the model: {few(unread)}",)


def load_tokenizer(
    path: Path, *, trust_remote_code: bool = False, follow_links: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in folder ``path``, or in a GGUF file.

    Raises:
        TextError: there is none.
        CheckpointError: there is one, but it cannot be read, or must not be.
    """
    if is_gguf(path):
        return _gguf_tokenizer(path)
    check_beside(path, follow=follow_links)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise TextError(
            f"{path} has no tokenizer (tokenizer.json or tokenizer.model), so no text can be "
            "measured; copy the original model's tokenizer files there"
        )
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            with (path / name).open("rb") as stream:
                refuse_pointer(path / name, stream.read(64))
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(path), trust_remote_code=trust_remote_code
            )
    except BaseException as error:
        # The Rust reader raises bare exceptions, or gives up with one that is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"the tokenizer in {path} cannot be read: {_one_line(error)}"
        ) from error
    return tokenizer


def _gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document, special = open_gguf(file).tokenizer()
    try:
        with quiet():
            return PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_str(json.dumps(document)),
                clean_up_tokenization_spaces=False,
                **special,
            )
    except Exception as error:  # the Rust reader raises bare ones
        raise CheckpointError(
            f"the tokenizer in {file} cannot be made: {_one_line(error)}"
        ) from error


def choose_device(asked: str) -> tuple[str, str]:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, and a sentence why."""
    if asked == "cpu":
        return "cpu", "cpu: requested"
    if asked == "auto" and not torch.cuda.is_available():
        return "cpu", "cpu: no CUDA device is visible"
    if asked in ("auto", "cuda"):
        if not torch.cuda.is_available():
            raise UsageError("cuda was requested but no CUDA device is visible; use --device cpu")
        count = torch.cuda.device_count()
        # Alone it is not asked: every device that is asked loses some hundred megabytes.
        best = max(range(count), key=lambda i: torch.cuda.mem_get_info(i)[0]) if count > 1 else 0
        many = f", the one of {count} with most free memory" if count > 1 else ""
        return f"cuda:{best}", f"cuda:{best}: {torch.cuda.get_device_name(best)}{many}"
    match = re.fullmatch(r"cuda:(\d+)", asked)
    if match is None:
        raise UsageError(f"device {asked!r} is unknown; give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1]) >= count:
        raise UsageError(f"{asked} was requested but {count} CUDA devices are visible")
    return asked, f"{asked}: requested"


def choose_dtype(asked: str | None, stored: torch.dtype, device: str) -> tuple[torch.dtype, str]:
    """The dtype to compute in (``fp32``, ``fp16``, ``bf16``, None), and a sentence why.

    The default is float32 on CPU, and the checkpoint's own 16-bit dtype on CUDA.
    """
    if asked is not None:
        if asked not in DTYPES:
            raise UsageError(f"dtype {asked!r} is unknown; give {', '.join(DTYPES)}")
        return DTYPES[asked], f"{asked}: requested"
    if device == "cpu":
        return torch.float32, "fp32: the default on cpu"
    if stored in (torch.float16, torch.bfloat16):
        short = "fp16" if stored == torch.float16 else "bf16"
        return stored, f"{short}: as the checkpoint is stored"
    return torch.bfloat16, f"bf16: the default on cuda for weights stored in {stored}".replace(
        "torch.", ""
    )


def _dequantised(config: Any) -> torch.dtype:
    """Takes ``quantization_config`` off, and tells the dtype the model has without it."""
    for part in (config, config.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def _untied_shape(config: Any) -> list[tuple[int, int]]:
    """What a tied head adds when it is given a weight of its own."""
    text = config.get_text_config()
    tied = getattr(text, "tie_word_embeddings", False)
    return [(text.vocab_size, text.hidden_size)] if tied else []


_NOT_BUILT = (
    *(KeyError, ValueError, TypeError, AttributeError, ArithmeticError, IndexError),
    *(AssertionError, RecursionError, NotImplementedError),
)
"""What classes of transformers raise for configs that make no sense."""


def _build(one: _Loading, config: Any, tensors: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    try:
        with quiet():
            model, report = one.loaded_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=one.dtype,
                ignore_mismatched_sizes=True,  # reported by name below
                output_loading_info=True,
            )
    except ImportError as error:
        raise CheckpointError(
            f"{config.model_type} needs a package that is not installed: {_one_line(error)}"
        ) from error
    except _NOT_BUILT as error:
        raise CheckpointError(
            f"config.json does not describe a {config.model_type} model that can be built: "
            f"{type(error).__name__}: {_one_line(error)}"
        ) from error
    model.config.name_or_path = str(one.path)
    return model, report


def _check_report(path: Path, model: Any, report: dict[str, Any]) -> list[str]:
    """Raises unless every weight came from disk; returns the tensors on disk nobody asked for."""
    for mismatch in sorted(report["mismatched_keys"]):
        key, on_disk, expected = mismatch[0], list(mismatch[1]), list(mismatch[2])
        raise CheckpointError(
            f"{path}: {key} has shape {on_disk} on disk, but {expected} by config.json; "
            "the two do not match"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of the model: {few(missing)}; "
            "a file is missing, or config.json is another model's"
        )
    unread = sorted(report["unexpected_keys"])
    for key in unread:
        parent = _submodule(model, key.rpartition(".")[0])
        if parent is not None and any(True for _ in parent.parameters(recurse=False)):
            raise CheckpointError(
                f"{path}: {key} is on disk, but the model of config.json does not have it; "
                "the two do not match"
            )
    return unread


def _submodule(model: Any, name: str) -> nn.Module | None:
    try:
        found: nn.Module = model.get_submodule(name)
    except AttributeError:
        return None
    return found if name else None


def _untie_head(model: Any) -> bool:
    """Give a tied head its own weight; returns whether it was tied."""
    head, weight = model.get_output_embeddings(), model.get_input_embeddings().weight
    own = getattr(head, "weight", None)
    if own is None or own is not weight:
        return False
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    never_tied(model)
    return True


def _not_finite(tensor: torch.Tensor) -> bool:
    # One reduction finds a fault; counting comes only then.
    return bool(tensor.numel()) and not bool(torch.isfinite(tensor.detach().abs().amax()))


def _check_range(
    one: _Loading, made_from: Mapping[str, tuple[str, ...]], values: Mapping[str, torch.Tensor]
) -> None:
    """Raise if a finite weight on disk is beyond the dtype that is computed in."""
    path, checkpoint, dtype = one.path, one.checkpoint, one.dtype
    limit = torch.finfo(dtype).max
    short = next(name for name, each in DTYPES.items() if each == dtype)
    for name, tensor in values.items():
        if not _not_finite(tensor):
            continue
        for disk in made_from.get(name, ()):
            stored = checkpoint.read(disk)
            if not stored.is_floating_point():
                continue
            lost = torch.isfinite(stored) & ~torch.isfinite(stored.to(dtype))
            if not bool(lost.any()):
                continue
            place = lost.nonzero()[0].tolist()
            raise UsageError(
                f"{path}: {disk} is {float(stored[tuple(place)]):.6g} at {place}, and {dtype} "
                f"ends at {limit:.6g}: it cannot be measured with --dtype {short}; use --dtype "
                f"{'bf16 or fp32' if short == 'fp16' else 'fp32'}".replace("torch.", "")
            )


def _zero_what_is_not_finite(values: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Set NaN and infinite weights to 0, and report them: a single one makes every logit NaN."""
    said = []
    for name, tensor in values.items():
        if not _not_finite(tensor):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        tensor.data.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        said.append(f"{name} has {bad} NaN or infinite values: measured with 0 in their place")
    return tuple(said)


def _disk_names(model: Any, stored: CheckpointTensors) -> dict[str, tuple[str, ...]]:
    made_from = join_names(model, stored.tensors)
    tied, ignored = computed_keys(model)
    keys = set(model.state_dict())
    excused = {*tied, *tied.values()}
    excused |= {key for key in keys for pattern in ignored if re.search(pattern, key)}
    check_covered(model, made_from, excused)
    return {
        key: tuple(on_disk for name in names for on_disk in stored.tensors[name].names)
        for key, names in made_from.items()
    }


def _streamed_note(
    network: Network, blocks: StreamedBlocks, needed: int, budget: int | None
) -> str:
    """Says that blocks are streamed, and what that takes."""
    limited = budget is not None and needed > budget * RESIDENT
    room = f"a budget of {size_of(budget or 0)}" if limited else f"what is free on {network.device}"
    least = network.weights_in_memory
    said = (
        f"streamed: {size_of(needed)} of weights are more than {room} holds, so that blocks are "
        f"read from disk as they are needed, {size_of(least)} being in memory at a time"
    )
    if budget is not None and least > budget * RESIDENT:
        said += "; even that is more than the budget leaves"
    if blocks.spent:
        said += (
            f"; reading all blocks takes about {max(1, round(network.reading_s))} s, an estimate "
            "does twice"
        )
    return said


def _not_streamed(needed: int, budget: int | None, why: CannotStream) -> str:
    return (
        f"its weights take {size_of(needed)} of a budget of {size_of(budget or 0)}: they are all "
        f"in memory, since the model cannot be streamed from disk: {why}"
    )


def _too_big(what: str, needed: int, device: str) -> OutOfMemoryError:
    gib = 1024**3
    return OutOfMemoryError(
        f"out of memory on {device} while {what}: its weights need {needed / gib:.1f} GiB and "
        f"{memory_free(device) / gib:.1f} GiB are free now; choose a 16-bit dtype "
        "(--dtype bf16), another device or a smaller model"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
