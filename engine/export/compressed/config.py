"""The ``quantization_config`` of a compressed-tensors checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.export.compressed.form import form_of, rounds_inputs
from engine.export.compressed.layouts import layout_of, reorders
from engine.export.packing import packing_version
from engine.formats.grammar import Format

_INPUTS = {
    "type": "int",
    "num_bits": 8,
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}


def quantization_config(
    formats: Mapping[str, Format],
    ignore: Iterable[str],
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The ``quantization_config`` entry of ``config.json``.

    Args:
        formats: of the quantised modules, by exact name; of experts by regular expression.
        ignore: names of the other linear modules; servers require all of them.
        more: further config groups.
    """
    groups: dict[Format, list[str]] = {}
    for name, fmt in formats.items():
        groups.setdefault(fmt, []).append(name)
    forms = {_form_name(fmt) for fmt in groups}
    return {
        "quant_method": "compressed-tensors",
        "version": packing_version(),
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": _group(fmt, names)
            for number, (fmt, names) in enumerate(groups.items())
        }
        | dict(more or {}),
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def _form_name(fmt: Format) -> str:
    form = form_of(fmt)
    assert form is not None, fmt
    return form.name(fmt)


def _group(fmt: Format, names: list[str]) -> dict[str, Any]:
    weights = layout_of(fmt).weights
    return {
        "format": _form_name(fmt),
        "targets": names,
        "input_activations": dict(_INPUTS) if rounds_inputs(fmt) else None,
        "output_activations": None,
        "weights": {
            "num_bits": fmt.bits,
            "symmetric": fmt.symmetric,
            "strategy": fmt.strategy,
            "group_size": fmt.group_size,
            "block_structure": None,
            "dynamic": False,
            "actorder": "group" if reorders(fmt) else None,
            "scale_dtype": None,
            "zp_dtype": None if fmt.symmetric else "torch.int8",
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
            **(weights(fmt) if callable(weights) else weights),
        },
    }
