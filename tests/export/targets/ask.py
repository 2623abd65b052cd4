"""Asks another tool what it decides for every layer, given the file that was written for it.

Run in an environment that has the tool::

    python tests/export/targets/ask.py TARGET FILE CHECKPOINT > tests/export/targets/decided/…

Nothing of qtui is imported. For each tool there is a function that hands over the file in the way
that the tool documents, on a model built from the checkpoint's config with random weights, and
reads back from its modules or configs what it would do. ``null`` is a layer that is left as it is.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

Decided = dict[str, Any]


def _model(checkpoint: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))


def _linear(model: Any) -> dict[str, Any]:
    import torch

    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def llm_compressor(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    from llmcompressor.recipe import Recipe

    model = _model(checkpoint)
    recipe = Recipe.create_instance(str(file))
    for modifier in recipe.modifiers:
        getattr(modifier, "_maybe_build_quant_config", lambda _: None)(model)
        modifier.initialize_quantization(model)
    solved: dict[str, str] = {}
    for modifier in recipe.modifiers:
        if type(modifier).__name__ == "GPTQModifier":
            for group in modifier.resolved_config.config_groups.values():
                for target in group.targets:
                    solved[target] = f"gptq {modifier.dampening_frac}"
    decided: Decided = {}
    for name, module in _linear(model).items():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            decided[name] = None
            continue
        weights = scheme.weights
        keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "actorder")
        decided[name] = {key: getattr(weights, key) for key in keys}
        decided[name] = json.loads(json.dumps(decided[name], default=lambda value: value.value))
        decided[name]["inputs"] = (
            None if scheme.input_activations is None else scheme.input_activations.num_bits
        )
        decided[name]["solved"] = solved.get(name) or solved.get(f"re:^{name}$")
    return version("llmcompressor"), decided


def gptqmodel(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    import gptqmodel
    from gptqmodel.quantization.config import QuantizeConfig

    config = QuantizeConfig(**json.loads(file.read_text()))
    decided: Decided = {}
    for name in _linear(_model(checkpoint)):
        outside = name == "lm_head" and not config.lm_head
        if "embed" in name or outside or config.dynamic_get(name) is False:
            decided[name] = None
            continue
        keys = ("bits", "group_size", "sym", "desc_act", "damp_percent", "static_groups")
        decided[name] = {key: config.dynamic_get(name, key, getattr(config, key)) for key in keys}
    return gptqmodel.__version__, decided


def auto_round(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    from auto_round.compressors.config_resolution.contracts import ResolvedScheme
    from auto_round.compressors.layer_config_resolver import resolve_layer_config
    from auto_round.schemes import preset_name_to_scheme
    from auto_round.utils import get_block_names

    model = _model(checkpoint)
    found = resolve_layer_config(
        model=model,
        scheme=ResolvedScheme(preset_name_to_scheme("W4A16"), "W4A16"),
        layer_config=json.loads(file.read_text()),
        quant_block_list=get_block_names(model),
    )
    keys = ("bits", "group_size", "sym", "data_type", "act_bits")
    decided: Decided = {}
    for name in _linear(model):
        values = found.get(name)
        kept = values is None or values["bits"] >= 16
        decided[name] = None if kept else {key: values[key] for key in keys}
    return version("auto-round"), decided


def model_optimizer(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    import modelopt.torch.quantization as mtq
    from modelopt.recipe import load_recipe

    model = _model(checkpoint)
    config = load_recipe(str(file)).quantize.model_dump()
    config["algorithm"] = None  # nothing is calibrated
    mtq.quantize(model, config)
    decided: Decided = {}
    for name, module in _linear(model).items():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None or not quantizer.is_enabled:
            decided[name] = None
            continue
        inputs = getattr(module, "input_quantizer", None)
        blocks = quantizer.block_sizes
        decided[name] = {
            "num_bits": quantizer.num_bits,
            "axis": quantizer.axis,
            "block_sizes": None
            if blocks is None
            else {str(key): value for key, value in blocks.items()},
            "inputs": bool(inputs is not None and inputs.is_enabled),
        }
    return version("nvidia-modelopt"), decided


def torchao(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    model = _model(checkpoint)
    quantize_(model, config_from_dict(json.loads(file.read_text())), filter_fn=None)
    decided: Decided = {}
    for name, module in _linear(model).items():
        weight = module.weight
        plain = type(weight).__name__ == "Parameter"
        decided[name] = None if plain else _of_torchao(weight)
    return version("torchao"), decided


def _of_torchao(weight: Any) -> dict[str, Any]:
    found = {"tensor": type(weight).__name__, "block_size": list(weight.block_size)}
    if hasattr(weight, "target_dtype"):
        found["dtype"] = str(weight.target_dtype)
        found["zero_point"] = bool((weight.zero_point != 0).any())
    for name in ("qdata", "act_quant_kwargs"):
        if hasattr(weight, name) and found["tensor"] != "IntxUnpackedToInt8Tensor":
            value = getattr(weight, name)
            found[name] = str(value.dtype) if name == "qdata" else value is not None
    return found


def hqq(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    from transformers import HqqConfig
    from transformers.integrations import prepare_for_hqq_linear

    model = _model(checkpoint)
    config = HqqConfig(**json.loads(file.read_text()))
    model = prepare_for_hqq_linear(model, quantization_config=config)
    decided: Decided = {}
    for name, module in _linear(model).items():
        given = getattr(module, "quant_config", None)
        keys = ("nbits", "group_size", "axis")
        decided[name] = (
            None if given is None else {key: given["weight_quant_params"][key] for key in keys}
        )
    return version("hqq"), decided


def mlx(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    import mlx.nn as nn
    from mlx_lm.models import llama
    from mlx_lm.utils import quantize_model

    table = json.loads(file.read_text())
    config = json.loads((checkpoint / "config.json").read_text())
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model, _ = quantize_model(
        model, config, 32, None, quant_predicate=lambda path, module: table.get(path, False)
    )
    decided: Decided = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            keys = ("group_size", "bits", "mode")
            decided[name] = {key: getattr(module, key) for key in keys}
        elif isinstance(module, nn.Linear | nn.Embedding):
            decided[name] = None
    return version("mlx-lm"), decided


def exllamav3(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    """The function that resolves a recipe, on stand-ins for its modules: the rest needs CUDA."""
    import types
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    import yaml

    class Linear:
        def __init__(self, key: str, shape: tuple[int, int]) -> None:
            self.key, self.shape, self.qmap = key, shape, "block"
            self.qbits_key = "head_bits" if key == "lm_head" else "bits"
            self.modules: list[Any] = []

        def weights_numel(self) -> int:
            return self.shape[0] * self.shape[1]

    for name in ("exllamav3", "exllamav3.conversion", "exllamav3.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    stub = types.ModuleType("exllamav3.modules.linear")
    stub.Linear = Linear  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    place = next(
        Path(each) / "exllamav3" for each in sys.path if (Path(each) / "exllamav3").is_dir()
    )
    spec = spec_from_file_location(
        "exllamav3.conversion.allocation", place / "conversion/allocation.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert find_spec("yaml")
    recipe = yaml.safe_load(file.read_text())
    linear = {
        name: Linear(name, tuple(found.weight.shape))
        for name, found in _linear(_model(checkpoint)).items()
        if "embed" not in name
    }
    model = types.SimpleNamespace(modules=list(linear.values()))
    strategy, _ = module.create_q_strategy_from_recipe(
        model, None, None, recipe["tensors"], recipe["head_bits"], 4
    )
    decided = {name: None if bits == 16 else {"bits": bits} for name, bits in strategy.items()}
    return version("exllamav3"), decided


def quark(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    from quark.torch.quantization.config.config import QConfig
    from quark.torch.quantization.model_transformation import setup_config_per_layer

    model = _model(checkpoint)
    config = QConfig.from_dict(json.loads(file.read_text()))
    found: dict[str, Any] = {}
    setup_config_per_layer(config, dict(model.named_modules()), found)
    decided: Decided = {}
    for name in _linear(model):
        weight = None if name not in found else found[name].weight
        keys = ("dtype", "qscheme", "ch_axis", "group_size", "symmetric", "observer_cls")
        values = {} if weight is None else weight.to_dict()
        decided[name] = None if weight is None else {key: values[key] for key in keys}
    return version("amd-quark"), decided


def bitsandbytes(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    import bitsandbytes
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    config = BitsAndBytesConfig.from_dict(json.loads(file.read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, config.llm_int8_skip_modules, model._keep_in_fp32_modules
    )
    replace_with_bnb_linear(model, skipped, config)
    decided: Decided = {}
    for name, module in _linear(model).items():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            decided[name] = {
                "quant_type": weight.quant_type,
                "blocksize": weight.blocksize,
                "compress_statistics": weight.compress_statistics,
            }
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            decided[name] = {"threshold": module.state.threshold}
        else:
            decided[name] = None
    return version("bitsandbytes"), decided


def llama_quantize(file: Path, checkpoint: Path) -> tuple[str, Decided]:
    """llama.cpp's own quantiser as the package ``cyllama`` has it, by the names of tensors.

    Its Python has no way to set the overrides nor an importance matrix, so that the pointers are
    written into its parameters: ``llama_model_quantize_params`` of ``llama.h``, found by its first
    four fields.
    """
    import ctypes
    import struct
    from tempfile import TemporaryDirectory

    import gguf
    from cyllama.llama import llama_cpp

    class Override(ctypes.Structure):
        _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))

    class Importance(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t),
        )  # fmt: skip

    types = {type.name.lower(): type.value for type in gguf.GGMLQuantizationType}
    words = [word.split("=", 1) for word in file.read_text().split()]
    given = (Override * (len(words) + 1))(
        *(Override(pattern.lower().encode(), types[type]) for pattern, type in words)
    )
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = q4_k_m = 15
    head = struct.pack("<iiii", 0, q4_k_m, params.output_tensor_type, params.token_embedding_type)
    place = id(params) + ctypes.string_at(id(params), 256).index(head)
    flags, pointer = 8, ctypes.sizeof(ctypes.c_void_p)

    def point(number: int, to: ctypes.Array[Any]) -> None:
        at, address = place + len(head) + flags, struct.pack("<Q", ctypes.addressof(to))
        ctypes.memmove(at + number * pointer, address, len(address))

    point(2, given)
    with TemporaryDirectory() as folder:
        plain, quantised = f"{folder}/plain.gguf", f"{folder}/quantised.gguf"
        _random_gguf(plain, json.loads((checkpoint / "config.json").read_text()))
        inputs = {
            tensor.name: int(tensor.shape[0])
            for tensor in gguf.GGUFReader(plain).tensors
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1
        }
        ones = (ctypes.c_float * max(inputs.values()))(*([1.0] * max(inputs.values())))
        importance = [
            Importance(name.encode(), ctypes.addressof(ones), size) for name, size in inputs.items()
        ]
        matrix = (Importance * (len(inputs) + 1))(*importance)
        point(0, matrix)
        llama_cpp.model_quantize(plain, quantised, params)
        decided = {
            tensor.name: tensor.tensor_type.name.lower()
            for tensor in gguf.GGUFReader(quantised).tensors
            if len(tensor.shape) > 1
        }
    # The extension prints to the file of stdout, past sys.stdout.
    return f"cyllama {version('cyllama')}", decided


def _random_gguf(path: str, config: dict[str, Any]) -> None:
    """A Llama of random weights in float16, with the tensors that a converter writes."""
    import gguf
    import numpy as np

    width, inner = config["hidden_size"], config["intermediate_size"]
    blocks, words = config["num_hidden_layers"], config["vocab_size"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    keys = width // heads * shared
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(64)
    file.add_embedding_length(width)
    file.add_block_count(blocks)
    file.add_feed_forward_length(inner)
    file.add_head_count(heads)
    file.add_head_count_kv(shared)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(words)
    file.add_tokenizer_model("llama")
    file.add_token_list([f"t{number}" for number in range(words)])
    shapes = {"token_embd": (words, width), "output": (words, width), "output_norm": (width,)}
    for block in range(blocks):
        shapes |= {
            f"blk.{block}.{name}": shape
            for name, shape in {
                "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width),
                "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width),
                "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner),
            }.items()
        }  # fmt: skip
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        dtype = np.float32 if len(shape) == 1 else np.float16
        file.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(dtype))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def main() -> None:
    target, file, checkpoint = sys.argv[1:]
    found, decided = globals()[target.replace("-", "_")](Path(file), Path(checkpoint))
    document = {"version": found, "file": Path(file).read_text(), "decided": decided}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
