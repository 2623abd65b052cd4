"""Serving kernels, and which formats and shapes each takes: what will run fast once exported.

A kernel is declared once, with the rules of the library that has it, and where that library says
so. Rules are of the weight alone: its format, and its shape ``[out, in]`` or
``[experts, out, in]``. What a GPU must have is said in words (`Kernel.runs_on`), since weights are
quantised for another machine as often as for this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from engine.formats.grammar import Format, parse_format
from engine.formats.storage import why_not_held

Rule: TypeAlias = Callable[[Format, Sequence[int]], str | None]
"""Why a kernel cannot take a format and shape; None if it can."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel that multiplies by quantised weights without writing them out first."""

    name: str
    """In documents."""
    title: str
    runs_on: str
    rule: Rule
    source: str
    """Where its library declares these rules."""
    note: str = ""
    """What differs from what is measured."""

    def why_not(self, fmt: Format, shape: Sequence[int]) -> str | None:
        """Why it cannot take a weight of ``shape`` in this format; None if it can."""
        return why_not_held(fmt, shape) or self.rule(fmt, shape)


OF_CODES = frozenset({"clip", "gptq", "smooth", "awq", "imatrix"})
"""Methods that leave codes and scales of the usual form: what ``smooth`` and ``awq`` do to the
inputs is in the operation before."""


def _other_methods(fmt: Format, besides: Sequence[str] = ()) -> str | None:
    """Why a method needs more than a kernel does."""
    for method in fmt.methods:
        if ("online", True) in method.options:
            return f"'+{method.name}:online' scales inputs at run time"
        if method.name not in OF_CODES and method.name not in besides:
            return {
                "hadamard": "'+hadamard' rotates inputs at run time",
                "hqq": "the zero points of '+hqq' are not whole",
                "outlier": "'+outlier' keeps columns in 16 bits",
                "a8": "it multiplies 16-bit inputs, '+a8' rounds them to 8",
            }.get(method.name, f"it does not know '+{method.name}'")
    return None


def _reordered(fmt: Format) -> bool:
    """Whether columns are stored in another order: GPTQ's act-order without static groups."""
    for method in fmt.methods:
        keys = dict(method.options)
        if method.name == "gptq" and "actorder" in keys and "static" not in keys:
            return fmt.strategy in ("group", "block")
    return False


def _experts(shape: Sequence[int]) -> str | None:
    return "it does not take the experts of a mixture" if len(shape) == 3 else None


def _integer(
    fmt: Format, shape: Sequence[int], bits: Sequence[int], groups: Sequence[int]
) -> str | None:
    """Why codes are not integers of these bits in these groups, or in whole rows."""
    if fmt.family != "integer" or fmt.bits not in bits:
        return f"it takes integers of {_listed(bits)} bits"
    if fmt.strategy not in ("group", "channel"):
        return "it takes one scale per group or channel"
    if fmt.group_size is not None and fmt.group_size not in groups:
        return f"it takes groups of {_listed(groups)}, or whole rows"
    if fmt.group_size is not None and shape[-1] % fmt.group_size:
        return f"groups of {fmt.group_size} do not divide rows of {shape[-1]}"
    return None


def _divides(shape: Sequence[int], out: int, row: int) -> str | None:
    if shape[-2] % out:
        return f"outputs must be a multiple of {out}, not {shape[-2]}"
    return f"inputs must be a multiple of {row}, not {shape[-1]}" if shape[-1] % row else None


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _marlin(fmt: Format, shape: Sequence[int]) -> str | None:
    if (why := _other_methods(fmt)) is not None:
        return why
    if fmt.name == "fp8-e4m3" or fmt.name in ("nvfp4", "mxfp4"):
        return _experts(shape)
    if (why := _integer(fmt, shape, (4, 8), (32, 64, 128))) is not None:
        return why
    if not fmt.symmetric and fmt.bits == 8:
        return "of 8 bits it takes symmetric codes alone: add -sym"
    if len(shape) == 3:
        return _marlin_experts(fmt, shape)
    if not _reordered(fmt):
        return None  # other shapes are padded
    if not fmt.symmetric:
        return "with act-order it takes symmetric codes alone: add -sym"
    return _divides(shape, 64, 128)


def _marlin_experts(fmt: Format, shape: Sequence[int]) -> str | None:
    """Hidden size a multiple of 128, the experts' own of 64 and of the group: either may be in."""
    _, out, row = shape
    own = max(64, fmt.group_size or 1)
    if (row % 128 == 0 and out % own == 0) or (out % 128 == 0 and row % own == 0):
        return None
    return f"experts of {out} by {row}: multiples of 128 and {own} are needed"


def _machete(fmt: Format, shape: Sequence[int]) -> str | None:
    return (
        _other_methods(fmt)
        or _experts(shape)
        or _integer(fmt, shape, (4, 8), (64, 128))
        or _divides(shape, 128, 64)
    )


def _exllama(fmt: Format, shape: Sequence[int]) -> str | None:
    return (
        _other_methods(fmt)
        or _experts(shape)
        or _integer(fmt, shape, (4,), (32, 64, 128))
        or _divides(shape, 32, 32)
    )


def _cutlass_int8(fmt: Format, shape: Sequence[int]) -> str | None:
    if (why := _other_methods(fmt, ("a8",)) or _experts(shape)) is not None:
        return why
    if fmt.name != "int8" or fmt.strategy not in ("channel", "tensor") or not fmt.symmetric:
        return "it takes symmetric int8, one scale per channel or tensor"
    if all(method.name != "a8" for method in fmt.methods):
        return "it multiplies 8-bit inputs: add +a8"
    return _divides(shape, 16, 16)


def _cutlass_fp8(fmt: Format, shape: Sequence[int]) -> str | None:
    if (why := _other_methods(fmt) or _experts(shape)) is not None:
        return why
    if fmt.name != "fp8-e4m3" or fmt.strategy not in ("channel", "tensor"):
        return "it takes fp8-e4m3, one scale per channel or tensor"
    return _divides(shape, 16, 16)


def _bitsandbytes(fmt: Format, shape: Sequence[int]) -> str | None:
    if (why := _other_methods(fmt, ("a8", "outlier")) or _experts(shape)) is not None:
        return why
    if fmt.family == "normal-float":
        return None
    if fmt.name != "int8" or fmt.strategy != "channel" or not fmt.symmetric:
        return "it takes nf4, fp4, and symmetric int8 with one scale per channel"
    dynamic = any(method.name == "a8" and not method.options for method in fmt.methods)
    if not dynamic:
        return "LLM.int8() rounds the inputs of every token to 8 bits: add +a8"
    return f"inputs must be a multiple of 4, not {shape[-1]}" if shape[-1] % 4 else None


def _llama_cpp(fmt: Format, shape: Sequence[int]) -> str | None:
    if fmt.family != "gguf":
        return "it takes the types of GGUF files"
    return _other_methods(fmt)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="marlin",
        title="Marlin",
        runs_on="NVIDIA, compute capability 7.5 and up",
        rule=_marlin,
        source="vLLM: kernels/linear/mixed_precision/marlin.py (can_implement), "
        "quantization/utils/marlin_utils.py (query_marlin_supported_quant_types, "
        "MARLIN_SUPPORTED_GROUP_SIZES, verify_marlin_supports_shape, "
        "check_moe_marlin_supports_layer), marlin_utils_fp8.py, marlin_utils_fp4.py; act-order "
        "with symmetric codes alone: GPTQModel nn_modules/qlinear/marlin.py (TYPE_MAP)",
    ),
    Kernel(
        name="machete",
        title="Machete",
        runs_on="NVIDIA Hopper, compute capability 9.0",
        rule=_machete,
        source="vLLM: kernels/linear/mixed_precision/machete.py (can_implement), "
        "quantization/utils/machete_utils.py (MACHETE_PREPACKED_BLOCK_SHAPE, "
        "query_machete_supported_quant_types, query_machete_supported_group_sizes)",
    ),
    Kernel(
        name="exllamav2",
        title="ExLlamaV2",
        runs_on="NVIDIA, inputs in float16",
        rule=_exllama,
        source="GPTQModel: nn_modules/qlinear/exllamav2.py (SUPPORTS_BITS, SUPPORTS_GROUP_SIZE, "
        "SUPPORTS_SYM, SUPPORTS_DESC_ACT, SUPPORTS_IN_FEATURES_DIVISIBLE_BY, "
        "SUPPORTS_OUT_FEATURES_DIVISIBLE_BY)",
    ),
    Kernel(
        name="cutlass-int8",
        title="CUTLASS int8",
        runs_on="NVIDIA, compute capability 7.5 and up",
        rule=_cutlass_int8,
        source="vLLM: kernels/linear/scaled_mm/cutlass.py, "
        "compressed_tensors.py (_is_dynamic_token_w8a8, _is_static_tensor_w8a8), "
        "_custom_ops.py (cutlass_scaled_mm: multiples of 16)",
    ),
    Kernel(
        name="cutlass-fp8",
        title="CUTLASS fp8",
        runs_on="NVIDIA, compute capability 8.9 and up",
        rule=_cutlass_fp8,
        source="vLLM: kernels/linear/scaled_mm/cutlass.py (is_supported), _custom_ops.py "
        "(cutlass_scaled_mm: multiples of 16)",
        note="it rounds inputs to fp8 too, which is not in the figures",
    ),
    Kernel(
        name="bitsandbytes",
        title="bitsandbytes",
        runs_on="NVIDIA, AMD, Intel, CPU",
        rule=_bitsandbytes,
        source="bitsandbytes: functional.py (quantize_4bit: block sizes), backends/cuda/ops.py "
        "(int8_linear_matmul: multiples of 4), nn/modules.py (Linear8bitLt)",
    ),
    Kernel(
        name="llama.cpp",
        title="llama.cpp",
        runs_on="CPU, NVIDIA, AMD, Metal, Vulkan",
        rule=_llama_cpp,
        source="llama.cpp: ggml/src/ggml.c (type_traits; ggml_row_size: rows of whole blocks)",
    ),
    Kernel(
        name="dense",
        title="16-bit",
        runs_on="everywhere",
        rule=lambda fmt, shape: None if fmt.kept else "it takes weights as they are",
        source="a plain matrix product",
    ),
)
"""In the order of lists."""


def kernels_for(format: str | Format, shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the kernels that take a weight in a format; empty if it will not run fast.

    Raises:
        FormatError: it does not parse.
    """
    fmt = parse_format(format) if isinstance(format, str) else format
    return tuple(each.name for each in KERNELS if each.why_not(fmt, shape) is None)


def kernel_named(name: str) -> Kernel:
    """A kernel by its name.

    Raises:
        KeyError: there is none.
    """
    return {each.name: each for each in KERNELS}[name]
