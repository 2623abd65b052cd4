"""What the headers of a finished checkpoint hold against its configuration, and against themselves.

Bits and groups that the config declares and the shapes rule out; names left out of quantisation
that match no module; scales of cached keys and values that are declared and absent; layers that
serving engines fuse and that are stored with different bits or whole-tensor scales.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer
from engine.checkpoint.checkpoint import open_stored
from engine.checkpoint.packed.declared import (
    beside,
    declared_config,
    matches,
    rotated_when_run,
)
from engine.errors import CheckpointError

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a block that vLLM and SGLang load as one."""
FUSING = ("gptq", "awq", "compressed-tensors", "modelopt", "fp8")
"""Layouts that they load so."""
_BITS = frozenset(("bits", "num_bits", "w_bit", "nbits"))
_GROUPS = frozenset(("group_size", "q_group_size"))
_IGNORED = frozenset(
    ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules", "exclude")
)
_NOT_WEIGHTS = frozenset(("input_activations", "output_activations", "kv_cache_scheme"))
_OUTSIDE = ("lm_head", "embed", "output", "visual", "vision", "audio", "mtp", "router", "gate")
"""Words of modules that tools list whether the model has them or not."""
_WHOLE_SCALES = (".weight_global_scale", ".weight_scale_2", ".weight_scale")
_INTEGERS = re.compile(r"^(?:hqq )?int(\d+)(?:-g(\d+))?")


def contradictions(
    checkpoint: Checkpoint, rows: Iterable[DiskLayer]
) -> tuple[p.Contradiction, ...]:
    """All of them, each with the layers that it is about.

    Args:
        checkpoint: the finished one.
        rows: its layers.
    """
    layers = list(rows)
    config = whole_config(checkpoint)
    if not checkpoint.quantised and not any(row.reader for row in layers):
        return ()
    return (
        *_rotations(config),
        *_sizes(layers, config),
        *_ignored(checkpoint, config),
        *_cache_scales(checkpoint, layers, config),
        *_fused(checkpoint, layers),
    )


def _rotations(config: Mapping[str, Any]) -> Iterator[p.Contradiction]:
    """Activations that programs must rotate; nothing here does."""
    if modules := rotated_when_run(config):
        yield p.Contradiction(
            "rotated-inputs",
            (),
            f"its configuration has activations rotated when it runs (at {', '.join(modules)}): "
            "programs that do not get noise, and so does a score here, which runs the weights as "
            "they are stored",
            {"modules": len(modules)},
        )


def whole_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says of its quantisation, wherever."""
    found: dict[str, Any] = dict(declared_config(checkpoint))
    mlx = checkpoint.config.get("quantization")
    found |= mlx if isinstance(mlx, dict) and not found else {}
    if checkpoint.folder.is_dir():
        own = beside(checkpoint, "hf_quant_config.json").get("quantization")
        found |= own if isinstance(own, dict) else {}
    return found


def _numbers(config: Mapping[str, Any], names: frozenset[str]) -> set[int]:
    """Whole numbers of some settings, at any depth."""
    found: set[int] = set()
    for key, value in config.items():
        if key in names and type(value) is int:
            found.add(value)
        elif isinstance(value, dict) and key not in _NOT_WEIGHTS:
            found |= _numbers(value, names)
    return found


def _sizes(layers: list[DiskLayer], config: Mapping[str, Any]) -> Iterator[p.Contradiction]:
    bits, groups = _numbers(config, _BITS), _numbers(config, _GROUPS)
    by_bits: dict[int, list[str]] = {}
    by_group: dict[int, list[str]] = {}
    for row in layers:
        held = _INTEGERS.match(row.dtype)
        if held is None or not row.reader:
            continue
        stored = int(held[1])
        if bits and stored not in bits:
            by_bits.setdefault(stored, []).append(row.name)
        size = int(held[2] or 0)
        if size and groups and size not in groups and -1 not in groups:
            by_group.setdefault(size, []).append(row.name)
    said = " or ".join(map(str, sorted(bits)))
    for stored, names in by_bits.items():
        yield p.Contradiction(
            "bits-otherwise",
            tuple(names),
            f"stored in {stored} bits by their shapes, declared {said}: programs that trust the "
            "configuration read other weights or refuse them",
            {"stored": stored, "declared": min(bits)},
        )
    said = " or ".join(map(str, sorted(groups)))
    for size, names in by_group.items():
        yield p.Contradiction(
            "group-size-otherwise",
            tuple(names),
            f"stored in groups of {size} by their shapes, declared {said}: programs that trust "
            "the configuration take scales of other groups or refuse the file",
            {"stored": size, "declared": min(groups)},
        )


def _ignored(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[p.Contradiction]:
    """Names that are left out of quantisation and match nothing."""
    modules = {name.rpartition(".")[0] for name in checkpoint.tensors}
    parts = modules | {
        ".".join(words[:at])
        for words in (module.split(".") for module in modules)
        for at in range(1, len(words))
    }
    for key, names in config.items():
        if key not in _IGNORED or not isinstance(names, list):
            continue
        unmatched = [
            name
            for name in names
            if isinstance(name, str)
            and not any(word in name for word in _OUTSIDE)
            and not _matches_any(name, parts)
        ]
        if unmatched:
            yield p.Contradiction(
                "ignored-nothing",
                (),
                f"its {key} names {unmatched[0]!r}"
                + (f" and {len(unmatched) - 1} more" if len(unmatched) > 1 else "")
                + ", which matches no module: a layer that was to stay in 16 bits may be quantised",
                {"names": len(unmatched)},
            )


def _matches_any(name: str, modules: set[str]) -> bool:
    if name.startswith("re:"):
        try:
            return any(matches(name[3:], module) for module in modules)
        except CheckpointError:
            return False
    if "*" in name:
        return any(fnmatchcase(module, name) for module in modules)
    return name[:1].isupper() or any(name in module for module in modules)  # a class's name


def _cache_scales(
    checkpoint: Checkpoint, layers: list[DiskLayer], config: Mapping[str, Any]
) -> Iterator[p.Contradiction]:
    """Scales of cached keys and values that the config declares."""
    scheme, algorithm = config.get("kv_cache_scheme"), config.get("kv_cache_quant_algo")
    declared = (isinstance(scheme, dict) and scheme.get("dynamic") is not True) or (
        isinstance(algorithm, str) and algorithm.lower() not in ("", "none")
    )
    if not declared:
        return
    raw = open_stored(checkpoint.folder, follow_links=checkpoint.follow_links)
    with_scale: dict[str, set[int]] = {"k": set(), "v": set()}
    for name in raw.tensors:
        found = re.search(r"\.(\d+)\..*?(?:(k|v)_scale|(kv)_(?:cache_)?scal\w+)$", name)
        if found is not None:
            for kind in found[2] or found[3]:
                with_scale[kind].add(int(found[1]))
    lacking = [
        row.name
        for row in layers
        for kind in ("k", "v")
        if row.block is not None
        and row.kind == f"{kind}_proj"
        and row.block not in with_scale[kind]
    ]
    lacking += [
        row.name
        for row in layers
        if row.kind in ("qkv_proj", "query_key_value", "c_attn")
        and row.block is not None
        and not (row.block in with_scale["k"] and row.block in with_scale["v"])
    ]
    if lacking:
        yield p.Contradiction(
            "missing-cache-scales",
            tuple(lacking),
            "without the scale of cached keys or values that the configuration declares: engines "
            "take 1.0, which clips or coarsens the cache",
            {"layers": len(lacking)},
        )


def _fused(checkpoint: Checkpoint, layers: list[DiskLayer]) -> Iterator[p.Contradiction]:
    """Layers that engines load as one, stored differently."""
    raw: Checkpoint | None = None
    for siblings in _siblings(layers):
        names = tuple(row.name for row in siblings)
        forms = {_form(row) for row in siblings}
        if len(forms) > 1:
            yield p.Contradiction(
                "fused-bits",
                names,
                f"stored in {' and '.join(sorted(forms))}, and vLLM and SGLang load them as one: "
                "they refuse the file or read one of them wrongly",
                {"forms": len(forms)},
            )
            continue
        raw = raw or open_stored(checkpoint.folder, follow_links=checkpoint.follow_links)
        yield from _scales(raw, siblings)


def _scales(raw: Checkpoint, siblings: list[DiskLayer]) -> Iterator[p.Contradiction]:
    """Scales of the whole tensor that are not the same."""
    for ending in _WHOLE_SCALES:
        found = [scale for row in siblings if (scale := number_of(raw, row.name + ending))]
        if len(found) < len(siblings) or min(found) <= 0 or max(found) == min(found):
            continue
        # In fp8 vLLM rounds the weights again to the greatest; in fp4 it only takes the greatest.
        how = "ratio" if ending == ".weight_scale" else "factor"
        yield p.Contradiction(
            "fused-scales",
            tuple(row.name for row in siblings),
            "stored with different scales of the whole tensor, and engines that load them as one "
            "take the greatest for all",
            {how: max(found) / min(found)},
        )


def _siblings(layers: list[DiskLayer]) -> Iterator[list[DiskLayer]]:
    by_home: dict[tuple[str, tuple[str, ...]], list[DiskLayer]] = {}
    for row in layers:
        for group in FUSED:
            if row.kind in group and row.block is not None and row.reader in FUSING:
                by_home.setdefault((row.name.rpartition(".")[0], group), []).append(row)
    return (rows for rows in by_home.values() if len(rows) > 1)


def _form(row: DiskLayer) -> str:
    """The bits of a layer; groups may differ."""
    held = _INTEGERS.match(row.dtype)
    return f"int{held[1]}" if held else row.dtype


def number_of(raw: Checkpoint, name: str) -> float | None:
    """A tensor of one number; None if there is none.

    Args:
        raw: a checkpoint as it is stored.
        name: of the tensor.
    """
    info = raw.tensors.get(name)
    if info is None or info.elements != 1 or "float" not in info.dtype:
        return None
    return float(raw.read(name).float().reshape(()))
