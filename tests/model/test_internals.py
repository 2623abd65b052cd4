"""What is used of torch and transformers beyond their public interfaces, one name a test.

A test that fails here after an update says what stops working until its name is found again, in
`engine/model/torch_internals.py` or `engine/model/transformers_internals.py`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import engine
from engine.model import torch_internals, transformers_internals
from tests import tiny

ENGINE = Path(engine.__file__).parent
HOMES = {"torch_internals.py", "transformers_internals.py"}
PRIVATE = {
    # torch
    "_version",
    "_parameters",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_amx_tile_supported",
    "_is_avx512_bf16_supported",
    # transformers
    "_apply_gate",
    "_attn_implementation_internal",
    "_can_set_attn_implementation",
    "_materialize_copy",
    "_model_mapping",
    "_keys_to_ignore_on_load_missing",
}
INTERNAL = (
    "transformers.conversion_mapping",
    "transformers.core_model_loading",
    "transformers.dynamic_module_utils",
    "transformers.models",
    "transformers.pytorch_utils",
    "transformers.integrations",
    "torch._",
)


def model_of(arch: str, folder: Path) -> nn.Module:
    found: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(tiny.build(arch, folder))
    return found


def test_a_model_is_loaded_from_tensors_without_values() -> None:
    """Without it an export that nothing loads is found only after it was written."""
    config = transformers.LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": 1})
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    with transformers_internals.reading_no_values():
        found = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)
    assert all(parameter.is_meta for parameter in found.parameters())


def test_some_tensors_are_loaded_into_a_model_without_values(tmp_path: Path) -> None:
    """Without it no model is streamed from disk; experts are fused and renamed as ever."""
    folder = tiny.build("mixtral", tmp_path)
    stored, whole = load_file(folder / "model.safetensors"), transformers.MixtralForCausalLM
    expected = whole.from_pretrained(folder).get_parameter("model.layers.1.mlp.experts.down_proj")
    with transformers_internals.reading_no_values():
        hollow = whole.from_pretrained(
            None,
            config=transformers.AutoConfig.from_pretrained(folder),
            state_dict={name: value.to("meta") for name, value in stored.items()},
        )
    some = {
        name: value for name, value in stored.items() if ".layers.1." in name and ".w2." in name
    }
    assert len(some) == 4
    transformers_internals.fill(hollow, some)
    loaded = {name for name, each in hollow.named_parameters() if not each.is_meta}
    assert loaded == {"model.layers.1.mlp.experts.down_proj"}
    assert torch.equal(hollow.get_parameter(*loaded), expected)


def test_attention_is_computed_step_by_step_and_as_before_afterwards(tmp_path: Path) -> None:
    """Without it the attention of a recipe is not compared with the reference's."""
    model = model_of("llama", tmp_path)
    before = model.config._attn_implementation_internal  # type: ignore[union-attr]
    assert transformers_internals.takes_eager_attention(model)
    found: list[object] = []
    hook = model.model.layers[0].self_attn.register_forward_hook(  # type: ignore[union-attr]
        lambda _module, _args, output: found.append(output[1])
    )
    ids = torch.arange(8)[None]
    with transformers_internals.eager_attention(model):
        model(input_ids=ids)
    model(input_ids=ids)
    hook.remove()
    probabilities, none = found
    assert isinstance(probabilities, torch.Tensor)
    assert torch.allclose(probabilities.sum(-1), torch.ones(1, 4, 8))
    assert none is None
    assert before != "eager"
    assert model.config._attn_implementation_internal == before  # type: ignore[union-attr]


def test_leaves_of_a_graph_are_found() -> None:
    """Without it no layer is known to act outside of its block."""
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    found = {id(leaf) for leaf in torch_internals.leaves_of(a * 2 + b.detach() + c.sum())}
    assert found == {id(a), id(c)}
    assert not list(torch_internals.leaves_of(torch.ones(2)))


def test_version_counts_writes_to_a_tensor() -> None:
    """Without it a weight that somebody wrote to is not noticed, nor a state that a block did."""
    tensor = torch.zeros(2)
    before = torch_internals.version_of(tensor)
    tensor.add_(1)
    assert torch_internals.version_of(tensor) == before + 1


def test_a_weight_can_be_swapped_without_registration() -> None:
    """Without it no layer can be held in a format."""
    linear, other = nn.Linear(2, 2), nn.Parameter(torch.eye(2), requires_grad=False)
    torch_internals.own_parameters(linear)["weight"] = other
    assert linear.weight is other


def test_every_kind_of_hook_is_in_the_tables() -> None:
    """Without them a hook that was left on the model is not noticed."""
    linear = nn.Linear(2, 2)
    tables = torch_internals.hook_tables(linear)
    register: list[Callable[..., object]] = [
        linear.register_forward_hook,
        linear.register_forward_pre_hook,
        linear.register_full_backward_hook,
        linear.register_full_backward_pre_hook,
    ]
    for count, one in enumerate(register, 1):
        one(lambda *_: None)
        assert sum(map(len, tables)) == count


def test_torch_says_whether_bfloat16_is_multiplied_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it estimates on CPUs with AMX, or with AVX-512 BF16, take much longer."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for faster in asked:
        for name in asked:
            monkeypatch.setattr(torch.cpu, name, lambda found=name == faster: found)
        assert torch_internals.multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, asked[-1], lambda: False)
    assert not torch_internals.multiplies_bfloat16()


def test_the_conversion_table_joins_experts_on_disk_to_the_fused_tensor(tmp_path: Path) -> None:
    """Without it a mixture's layers have no names on disk, and triage and sweep differ in rows."""
    model = model_of("mixtral", tmp_path)
    conversion = transformers_internals.conversion_of(model)
    on_disk = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    key, source = transformers_internals.renamed(conversion, on_disk)
    assert key in conversion.inside
    assert source in conversion.by_source
    assert transformers_internals.renamed(conversion, key, converted=False) == (key, None)


def test_names_sort_as_they_are_fused() -> None:
    """Without it experts beyond the ninth would be taken for others."""
    names = [f"experts.{n}.w" for n in (10, 2, 1)]
    assert transformers_internals.in_loading_order(names) == [names[2], names[1], names[0]]


def test_architectures_are_known_by_config() -> None:
    """Without it no checkpoint can be opened."""
    classes = transformers_internals.causal_classes()
    assert classes[transformers.LlamaConfig] is transformers.LlamaForCausalLM


def test_code_that_comes_with_a_checkpoint_can_be_loaded() -> None:
    """Without it --trust-remote-code opens nothing; `test_load.py` opens such a checkpoint."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    assert list(inspect.signature(get_class_from_dynamic_module).parameters)[:2] == [
        "class_reference",
        "pretrained_model_name_or_path",
    ]


def test_tied_and_computed_keys_are_told(tmp_path: Path) -> None:
    """Without them a tied model is refused as one whose tensors cannot be traced."""
    model = model_of("qwen3", tmp_path)
    tied, ignored = transformers_internals.computed_keys(model)
    assert tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert isinstance(ignored, tuple)
    assert hasattr(transformers.PreTrainedModel, "_keys_to_ignore_on_load_missing")


def test_transposed_layers_are_told(tmp_path: Path) -> None:
    """Without it GPT-2 has no layers."""
    kinds = {type(module) for module in model_of("gpt2", tmp_path).modules()}
    assert transformers_internals.transposed_linear() in kinds


def test_grouped_experts_are_told_and_gated_as_they_gate_themselves(tmp_path: Path) -> None:
    """Without it the inputs of experts can be neither seen nor rounded."""
    model = model_of("qwen3_moe", tmp_path)
    experts = [m for m in model.modules() if transformers_internals.has_grouped_experts(m)]
    assert experts
    module, inner = experts[0], torch.randn(3, 64)
    gate, up = inner.chunk(2, dim=-1)
    assert torch.equal(transformers_internals.gated(module, inner), module.act_fn(gate) * up)
    assert not transformers_internals.has_grouped_experts(nn.Linear(2, 2))


def test_experts_without_a_flag_are_still_transposed() -> None:
    """Without it Llama 4's experts are quantised along the wrong dimension."""
    from transformers.models.llama4 import modeling_llama4

    for name in transformers_internals.TRANSPOSED_EXPERTS:
        assert hasattr(modeling_llama4, name)


def test_no_other_file_uses_internals() -> None:
    for file in sorted(ENGINE.rglob("*.py")):
        if file.name in HOMES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert own or node.attr not in PRIVATE, f"{file}:{node.lineno} uses {node.attr}"
            for module in imported(node):
                assert not module.startswith(INTERNAL), f"{file}:{node.lineno} imports {module}"


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
