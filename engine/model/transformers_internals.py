"""Everything we use of transformers beyond its public interface, with what it is used for.

transformers may rename any of it in a minor release: `tests/model/test_internals.py` names each one
and what stops working without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a config is read before torch is there
    from torch import Tensor, nn

TRANSPOSED_EXPERTS = ("Llama4TextExperts",)
"""Classes of experts stored as ``[experts, in, out]`` that carry no flag for it."""


class Conversion(NamedTuple):
    """What transformers does to the tensors of a checkpoint when it loads them."""

    renamings: list[Any]
    converters: list[Any]
    by_source: dict[str, Any]
    """Converters by each of their source patterns."""
    prefix: str
    inside: Mapping[str, Any]


def conversion_of(model: Any) -> Conversion:
    """The conversion table of a model: without it no layer finds its name on disk."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    steps = get_model_conversion_mapping(model)
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    return Conversion(
        [step for step in steps if isinstance(step, WeightRenaming)],
        converters,
        {source: step for step in converters for source in step.source_patterns},
        model.base_model_prefix,
        model.state_dict(),
    )


def in_loading_order(names: Iterable[str]) -> list[str]:
    """Names on disk in the order in which transformers fuses them."""
    from transformers.core_model_loading import dot_natural_key

    return sorted(names, key=dot_natural_key)


def renamed(conversion: Conversion, name: str, *, converted: bool = True) -> tuple[str, str | None]:
    """The key in the model of a name on disk, and the source pattern of its converter, if any."""
    from transformers.core_model_loading import rename_source_key

    renamings = conversion.renamings if converted else []
    converters = conversion.converters if converted else []
    found: tuple[str, str | None] = rename_source_key(
        name, renamings, converters, conversion.prefix, conversion.inside
    )
    return found


@contextmanager
def reading_no_values() -> Iterator[None]:
    """Inside, a model is loaded from tensors without values, and stays without: names and shapes
    run through everything that a loader does with them."""
    from transformers import core_model_loading

    own = core_model_loading._materialize_copy

    def kept(tensor: Any, device: Any = None, dtype: Any = None) -> Any:
        whole = tensor[...]
        return own(whole, None if whole.is_meta else device, dtype)

    core_model_loading._materialize_copy = kept
    try:
        yield
    finally:
        core_model_loading._materialize_copy = own


def fill(model: Any, tensors: Mapping[str, Any]) -> None:
    """Load some tensors of a checkpoint into a model, renamed and fused as all of them would be.

    Args:
        model: as `reading_no_values` gives it; parameters become new ones, in the dtype they have.
        tensors: by their names on disk, indexed with ``...`` to be read; all that one parameter
            is made from come together.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    config = LoadStateDictConfig(weight_mapping=get_model_conversion_mapping(model))
    convert_and_load_state_dict_in_model(model, dict(tensors), config)


def causal_classes() -> Any:
    """Classes of causal language models by config class: which architectures can be opened."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping


def multimodal_classes() -> Any:
    """Classes by config class of language models that see or hear as well."""
    from transformers import AutoModelForMultimodalLM

    return AutoModelForMultimodalLM._model_mapping


def class_from_code(reference: str, folder: Path) -> Any:
    """The class that comes as code with a checkpoint, once that was trusted."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, str(folder))


def computed_keys(model: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tied keys by what they are tied to, and patterns of keys that a model computes itself."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return tied, tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Inside, attention is computed step by step, so that its modules return probabilities.

    The setting is in the configurations that a model and its parts have; each gets its own back.
    """
    configs = {id(module.config): module.config for module in _with_config(model)}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def takes_eager_attention(model: Any) -> bool:
    """Whether `eager_attention` changes how a model computes attention."""
    return bool(type(model)._can_set_attn_implementation())


def _with_config(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation_internal"):
            yield module


def transposed_linear() -> type[nn.Module]:
    """GPT-2's linear layer, whose weight is ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    found: type[nn.Module] = Conv1D
    return found


def has_grouped_experts(module: nn.Module) -> bool:
    """Whether a module's class went through ``use_experts_implementation``."""
    return hasattr(module, "_apply_gate") and hasattr(type(module).forward, "__wrapped__")


def gated(module: Any, inner: Tensor) -> Tensor:
    """The activation of a module of grouped experts, ``[tokens, inner]``."""
    found: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return found


def empty_cache(config: Any) -> Any:
    """A cache of keys and values, and of states of layers that have others, for one batch."""
    from transformers import DynamicCache

    return DynamicCache(config=config.get_text_config(decoder=True))


def keeps_every_key(config: Any) -> bool:
    """Whether every layer of such a cache keeps all keys and values, at one place for each token.

    A layer with a window or a state of its own takes what is padding into account by its place.
    """
    from transformers.cache_utils import DynamicLayer

    text = config.get_text_config(decoder=True)
    windowed = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    layers = empty_cache(config).layers
    return not windowed and all(type(layer) is DynamicLayer for layer in layers)
