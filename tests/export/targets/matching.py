"""How each tool finds the entry of a layer in its file: its rule, written again from its source.

``matching.RULES[target](text, names)`` gives, for every name, what the tool would take for it, or
None where it leaves the layer as it is. The values are the file's own.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml

Found = dict[str, Any]


def llm_compressor(text: str, names: Iterable[str]) -> Found:
    """compressed_tensors 0.19 ``utils/match.py``, ``match_name``: ``re:`` matches from the start,
    anything else is equal; ``_match_class``: or it is the name of a class."""
    found: Found = dict.fromkeys(names)
    for stage in yaml.safe_load(text).values():
        for modifiers in stage.values():
            for modifier, settings in modifiers.items():
                for group in settings["config_groups"].values():
                    for target in group["targets"]:
                        assert target not in ("Linear", "Embedding", "Module")
                        for name in found:
                            if target == name or (
                                target.startswith("re:") and re.match(target[3:], name)
                            ):
                                assert found[name] is None, f"{name} has two schemes"
                                found[name] = {"modifier": modifier, **group}
    return found


def gptqmodel(text: str, names: Iterable[str]) -> Found:
    """GPTQModel 7.7 ``quantization/config.py``, ``_resolve_dynamic_override``: ``-:`` rules come
    first, then the first that matches from the start; else the config itself."""
    config = json.loads(text)
    dynamic = config["dynamic"]
    rules = sorted(dynamic, key=lambda rule: not rule.startswith("-"))
    found: Found = {}
    for name in names:
        base = {key: value for key, value in config.items() if key not in ("dynamic", "lm_head")}
        rule = next((rule for rule in rules if re.match(rule[2:], name)), None)
        if rule is not None and rule.startswith("-"):
            found[name] = None
        else:
            found[name] = base | (dynamic[rule] if rule is not None else {})
    return found


def auto_round(text: str, names: Iterable[str]) -> Found:
    """auto-round 0.16 ``compressors/layer_config_resolver.py``, step 6: a name of a module is
    that module; any other is searched for in all names. 16 bits are kept."""
    names = list(names)
    found: Found = dict.fromkeys(names)
    for key, values in json.loads(text).items():
        hit = [key] if key in names else [name for name in names if re.search(key, name)]
        found |= dict.fromkeys(hit, None if values["bits"] >= 16 else values)
    return found


def mlx(text: str, names: Iterable[str]) -> Found:
    """mlx-lm 0.32 ``utils.py``, ``quantize_model``, with the predicate that the file is for."""
    table = json.loads(text)
    return {name: table.get(name) or None for name in names}


def model_optimizer(text: str, names: Iterable[str]) -> Found:
    """modelopt 0.47 ``torch/quantization/conversion.py``, ``set_quantizer_by_cfg``: every entry in
    turn, by ``fnmatch`` on the quantiser's name; a later one replaces."""
    found: Found = dict.fromkeys(names)
    for entry in yaml.safe_load(text)["quantize"]["quant_cfg"]:
        for name in found:
            if fnmatch.fnmatch(f"{name}.weight_quantizer", entry["quantizer_name"]):
                found[name] = entry["cfg"] if entry["enable"] else None
    return found


def torchao(text: str, names: Iterable[str]) -> Found:
    """torchao 0.18 ``quantization/quant_api.py``, ``_fqn_to_config_handler``: the exact name of the
    parameter or the module, then ``re.fullmatch`` of the first pattern, then ``_default``."""
    configs = json.loads(text)["_data"]["fqn_to_config"]
    assert "_default" not in configs
    found: Found = {}
    for name in names:
        pattern = next(
            (key for key in configs if key.startswith("re:") and re.fullmatch(key[3:], name)), ""
        )
        found[name] = configs.get(f"{name}.weight") or configs.get(name) or configs.get(pattern)
    return found


def bitsandbytes(text: str, names: Iterable[str]) -> Found:
    """transformers 5.23 ``quantizers/quantizers_utils.py``, ``should_convert_module``."""
    config = json.loads(text)
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    skip = config.pop("llm_int8_skip_modules")
    return {
        name: None
        if any(re.match(rf"(?:{key}){boundary}", name) or name.endswith(key) for key in skip)
        else config
        for name in names
    }


def hqq(text: str, names: Iterable[str]) -> Found:
    """transformers 5.23 ``integrations/hqq.py``, ``name_to_linear_tag``."""
    config = json.loads(text)["dynamic_config"]

    def tag(name: str) -> str:
        parts = [part for part in name.split(".") if part not in ("model", "layers")]
        return ".".join(part for part in parts if not part.isnumeric())

    return {name: config.get(tag(name)) for name in names}


def exllamav3(text: str, names: Iterable[str]) -> Found:
    """exllamav3 1.6 ``conversion/allocation.py``, ``create_q_strategy_from_recipe``: the last entry
    that matches, exactly or where it has ``*?[`` as a pattern; every tensor needs one."""
    recipe = yaml.safe_load(text)
    found: Found = {}
    for name in names:
        bits = recipe["head_bits"] if name == "lm_head" else None
        for key, value in recipe["tensors"].items():
            pattern = any(sign in key for sign in "*?[")
            if fnmatch.fnmatchcase(name, key) if pattern else name == key:
                bits = value
        assert bits is not None, f"{name} is missing"
        found[name] = None if bits == 16 else bits
    return found


def quark(text: str, names: Iterable[str]) -> Found:
    """amd-quark 0.13 ``torch/quantization/model_transformation.py``, ``setup_config_per_layer``:
    excluded names first, then the exact name if it is no pattern, then the first pattern."""
    config = json.loads(text)
    layers, excluded = config["layer_quant_config"], config["exclude"]
    assert config["global_quant_config"]["weight"] is None

    def pattern(name: str) -> bool:
        return any(sign in name for sign in "*?[")

    found: Found = {}
    for name in names:
        if any(fnmatch.fnmatch(name, each) if pattern(each) else each == name for each in excluded):
            found[name] = None
        elif name in layers and not pattern(name):
            found[name] = layers[name]["weight"]
        else:
            key = next((key for key in layers if fnmatch.fnmatch(name, key)), None)
            found[name] = None if key is None else layers[key]["weight"]
    return found


def llama_quantize(text: str, names: Iterable[str]) -> Found:
    """llama.cpp ``tools/quantize/quantize.cpp``, ``parse_tensor_type_file``: words, the pattern in
    lower case; ``src/llama-quant.cpp``, ``llama_tensor_get_type``: the first that is found."""
    rules = [word.split("=", 1) for word in text.split()]
    return {
        name: next((type for rule, type in rules if re.search(rule.lower(), name)), None)
        for name in names
    }


RULES: dict[str, Callable[[str, Iterable[str]], Found]] = {
    "llm-compressor": llm_compressor,
    "gptqmodel": gptqmodel,
    "auto-round": auto_round,
    "model-optimizer": model_optimizer,
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
    "hqq": hqq,
    "mlx": mlx,
    "exllamav3": exllamav3,
    "quark": quark,
    "llama-quantize": llama_quantize,
}
