"""Loading: what is chosen, what is refused, and with which words."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.errors import CheckpointError, OutOfMemoryError, TextError, UsageError
from engine.model import memory
from engine.model.load import (
    LoadStage,
    choose_device,
    choose_dtype,
    load_network,
    load_tokenizer,
    resolve_model,
)
from engine.model.memory import check_memory, memory_free, memory_needed
from tests import tiny


@pytest.fixture
def llama(folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder("llama"), tmp_path / "llama"))


def edit(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(fields)
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# -- refusals --------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_network(tmp_path / "nowhere")


def test_no_config(llama: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_network(llama)


def test_a_config_that_is_not_json(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_network(llama)


def test_an_unknown_architecture(llama: Path) -> None:
    edit(llama, model_type="borogove")
    version = transformers.__version__
    with pytest.raises(CheckpointError, match=f"'borogove' is unknown to transformers {version}"):
        load_network(llama)
    edit(llama, model_type=None)
    with pytest.raises(CheckpointError, match="no model_type"):
        load_network(llama)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a"),
        ({"model_type": "t5", "architectures": None}, "'t5' is an encoder-decoder"),
        ({"model_type": "vit", "architectures": None}, "no causal language model for .*'vit'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'.*stored plain"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "'compressed-tensors'.*stored plain",
        ),
    ],
)
def test_models_that_are_not_read(llama: Path, fields: dict[str, object], sentence: str) -> None:
    edit(llama, **fields)
    with pytest.raises(CheckpointError, match=sentence):
        load_network(llama)


def test_a_config_that_contradicts_itself(llama: Path) -> None:
    edit(llama, hidden_size="many")
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a llama model"):
        load_network(llama)


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_network(llama)


def test_a_missing_tensor_is_named_not_drawn_at_random(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj\.weight"):
        load_network(llama)


def test_a_missing_head_of_an_untied_model_is_an_error(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_network(llama)


def test_a_tensor_of_another_shape(llama: Path) -> None:
    edit(llama, intermediate_size=96)
    sentence = (
        r"mlp\.down_proj\.weight has shape \[64, 128\] on disk, but \[64, 96\] by config\.json"
    )
    with pytest.raises(CheckpointError, match=sentence):
        load_network(llama)


def test_a_bias_the_model_has_no_place_for(llama: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(llama, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is on disk.*does not have it"):
        load_network(llama)


def test_tensors_of_no_module_are_told_not_refused(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({"value_head.weight": torch.ones(1, 64)}))
    notes = load_network(llama).notes
    assert any("1 tensors on disk are not part" in n and "value_head.weight" in n for n in notes)


def test_it_does_not_fit(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model.load.memory_free", lambda _device: 1000)
    with pytest.raises(
        OutOfMemoryError, match=r"streaming llama in float32 from disk needs .*GiB.*--dtype bf16"
    ):
        load_network(llama)


def test_memory_that_runs_out_while_loading(llama: Path) -> None:
    def on_stage(stage: LoadStage) -> None:
        if stage.name == "loading weights":
            raise MemoryError

    with pytest.raises(OutOfMemoryError, match="out of memory on cpu while loading llama"):
        load_network(llama, on_stage=on_stage)


# -- pickles and foreign code ----------------------------------------------------------------------


def test_pickled_tensors_load_as_safetensors_do(llama: Path) -> None:
    expected = load_network(llama)
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    network = load_network(llama)
    assert network.layers == expected.layers
    assert all(torch.equal(network.weight(n), expected.weight(n)) for n in network.layers)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_not_opened(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    (llama / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil(ran)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        load_network(llama)
    assert not ran.exists()


def test_foreign_code_runs_only_when_asked_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    (llama / "foreign.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class ForeignConfig(LlamaConfig):\n    model_type = 'borogove'\n"
        "class ForeignForCausalLM(LlamaForCausalLM):\n    config_class = ForeignConfig\n"
    )
    auto_map = {
        "AutoConfig": "foreign.ForeignConfig",
        "AutoModelForCausalLM": "foreign.ForeignForCausalLM",
    }
    expected = load_network(llama)
    edit(llama, model_type="borogove", auto_map=auto_map)
    with pytest.raises(CheckpointError, match=r"comes with the checkpoint.*--trust-remote-code"):
        load_network(llama)
    network = load_network(llama, trust_remote_code=True)
    assert type(network.model).__name__ == "ForeignForCausalLM"
    assert network.resumable
    ids = tiny.ids(1, 16)
    assert torch.equal(network.resume(ids, -1, None), expected.resume(ids, -1, None))


def test_a_known_architecture_that_also_brings_code_runs_transformers_own(llama: Path) -> None:
    edit(llama, auto_map={"AutoModelForCausalLM": "absent.Foreign"})
    assert type(load_network(llama).model).__module__.startswith("transformers.")


# -- choices ---------------------------------------------------------------------------------------


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == ("cpu", "cpu: no CUDA device is visible")
    assert choose_device("cpu")[0] == "cpu"
    for asked in ("cuda", "cuda:0", "tpu"):
        with pytest.raises(UsageError, match=asked):
            choose_device(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((10, 40)[i], 80))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert choose_device("auto") == ("cuda:1", "cuda:1: card 1, the one of 2 with most free memory")
    assert choose_device("cuda:0")[0] == "cuda:0"
    with pytest.raises(UsageError, match="2 CUDA devices are visible"):
        choose_device("cuda:2")


def test_dtypes() -> None:
    fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
    assert choose_dtype(None, bf16, "cpu")[0] is fp32
    assert choose_dtype(None, fp16, "cuda:0")[0] is fp16
    assert choose_dtype(None, bf16, "cuda:0")[0] is bf16
    assert choose_dtype(None, fp32, "cuda:0") == (
        bf16,
        "bf16: the default on cuda for weights stored in float32",
    )
    assert choose_dtype("fp16", fp32, "cpu") == (fp16, "fp16: requested")
    with pytest.raises(UsageError, match="'int8' is unknown; give fp32, fp16, bf16"):
        choose_dtype("int8", fp32, "cpu")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_sixteen_bit_checkpoint_loads_as_transformers_loads_it(
    tmp_path: Path, dtype: str
) -> None:
    folder = tiny.build("llama", tmp_path / "half", dtype=torch.bfloat16)
    network = load_network(folder, device="cpu", dtype=dtype)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert network.dtype is wanted
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted).eval()
    for name, parameter in plain.named_parameters():
        assert torch.equal(network.model.get_parameter(name), parameter), name
    ids = tiny.ids(1, 16)
    with torch.no_grad():
        whole = plain(input_ids=ids, use_cache=False).logits
    assert network.resumable
    assert torch.equal(network.resume(ids, -1, None), whole)


def test_stages_are_told_in_order_and_weights_in_full(llama: Path) -> None:
    seen: list[LoadStage] = []
    load_network(llama, on_stage=seen.append)
    names = list(dict.fromkeys(stage.name for stage in seen))
    assert names == ["reading config", "building the model", "loading weights", "checking resume"]
    weights = [(stage.done, stage.total) for stage in seen if stage.in_bytes]
    assert {stage.name for stage in seen if stage.in_bytes} == {"loading weights"}
    assert [done for done, _ in weights] == sorted(done for done, _ in weights)
    total = sum(t.nbytes for t in load_file(llama / "model.safetensors").values())
    assert weights[-1] == (total, total)


def test_loading_leaves_the_terminal_alone(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_network(llama)
    assert capfd.readouterr() == ("", "")


# -- stored in eight and four bits -----------------------------------------------------------------


def test_fp8_blocks_are_dequantised_and_said_so(llama: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    scales = torch.rand(4, 2) + 0.5
    codes: dict[str, torch.Tensor] = {}

    def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
        codes["fp8"] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name] = codes["fp8"]
        tensors[f"{name}_scale_inv"] = scales

    rewrite(llama, to_fp8)
    edit(
        llama,
        quantization_config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [32, 32],
        },
    )
    network = load_network(llama, device="cpu")
    assert "stored in fp8, dequantised as reference" in network.notes
    layer = network.layers[name.removesuffix(".weight")]
    assert layer.disk == (name, f"{name}_scale_inv")
    expected = torch.empty(128, 64)
    for i in range(128):
        for j in range(64):
            expected[i, j] = codes["fp8"][i, j].float() * scales[i // 32, j // 32]
    assert torch.equal(network.weight(layer.name), expected)


def test_mxfp4_experts_are_dequantised_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from engine.checkpoint import open_checkpoint
    from engine.model.checkpoint_tensors import checkpoint_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 130, (2, 6, 3), dtype=torch.uint8, generator=generator)
    name = "model.layers.0.mlp.experts.down_proj"
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = checkpoint_tensors(open_checkpoint(tmp_path), torch.bfloat16)
    assert list(stored.tensors) == [name]
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert stored.tensors[name].shape == tuple(expected.shape)
    assert torch.equal(stored.tensors[name][...], expected)


# -- tokenizer, source, memory ---------------------------------------------------------------------


def test_the_tokenizer_takes_bytes_there_and_back(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    text = "a  line\n\tüñ"
    encoded = tokenizer(text)["input_ids"]
    assert len(encoded) == len(text.encode())
    assert tokenizer.decode(encoded) == text


def test_a_folder_without_tokenizer(llama: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TextError, match="has no tokenizer"):
        load_tokenizer(llama)


def test_a_tokenizer_that_cannot_be_read(llama: Path) -> None:
    (llama / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read"):
        load_tokenizer(llama)


def test_a_folder_is_its_own_source(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(llama)) == llama
    monkeypatch.chdir(llama.parent)
    assert resolve_model("llama") == Path("llama")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model("llama/config.json")


@pytest.mark.parametrize(
    "source", ["./absent", "/absent/folder", "~/absent/folder", "a/b/c", "a b"]
)
def test_what_looks_like_a_path_is_not_looked_up(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(source)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Exception | Path, *, offline: bool) -> None:
    import huggingface_hub

    def download(_repo: str, **_kwargs: object) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: offline)


def test_hub_answers(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None)
    cases = [
        (errors.LocalEntryNotFoundError("not cached"), True, "HF_HUB_OFFLINE forbids"),
        (errors.LocalEntryNotFoundError("no network"), False, "could not be reached: no network"),
        (errors.RepositoryNotFoundError("x", response=response), False, "nor a model on the hub"),
        (errors.GatedRepoError("x", response=response), False, "a/b is gated"),
        (errors.HfHubHTTPError("busy", response=response), False, "did not send a/b: busy"),
    ]
    for answer, offline, sentence in cases:
        hub(monkeypatch, answer, offline=offline)
        with pytest.raises(CheckpointError, match=sentence):
            resolve_model("a/b")
    hub(monkeypatch, llama, offline=False)
    assert resolve_model("a/b") == llama


def test_memory_is_counted_by_shape_and_dtype() -> None:
    assert memory_needed([(3, 5), (7,)], torch.bfloat16) == 44
    assert memory_needed([], torch.float32) == 0
    assert memory_free("cpu") > 0


def test_a_container_limits_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory_free("cpu") == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_free("cpu") > 1000


def test_a_shortage_names_both_amounts() -> None:
    check_memory(5, 5, "cpu", what="it")
    with pytest.raises(OutOfMemoryError, match=r"it needs 3\.0 GiB and cuda:0 has 1\.5 GiB free"):
        check_memory(3 * 2**30, 3 * 2**29, "cuda:0", what="it")
