"""What is wrong with a checkpoint or a text: one sentence, its exit code, the engine alive."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.opening.inspect import inspect_headers
from tests import forked, tiny
from tests.drive import ended, facts, settings, until


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("sound") / "llama")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in sound.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def open_it(source: str | Path, chosen: p.Settings) -> tuple[p.JobEnded, list[p.AnyEvent]]:
    """Open, ask for a sweep too, and see the engine take another command afterwards."""
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), chosen))
        client.send(p.Sweep())
        events = until(client, ended("sweep"))
        assert_alive(client)
    finally:
        client.close()
    opening = [e for e in events if isinstance(e, p.JobEnded) and e.kind == "open"]
    assert len(opening) == 1
    if opening[0].status == "failed":
        # What waited for the model says the same thing.
        last = events[-1]
        assert isinstance(last, p.JobEnded)
        assert (last.message, last.exit_code) == (opening[0].message, opening[0].exit_code)
    return opening[0], events


def assert_alive(client: InProcess) -> None:
    client.send(p.SetFormat(("no such layer",), "int4"))
    refused = until(client, lambda event: isinstance(event, p.Refused))[-1]
    assert isinstance(refused, p.Refused)
    assert "no such layer" in refused.message


def edit_config(model: Path, **changed: object) -> None:
    config = json.loads((model / "config.json").read_text())
    config.update(changed)
    (model / "config.json").write_text(json.dumps(config))


def no_config(model: Path) -> str:
    (model / "config.json").unlink()
    return "config.json"


def config_is_not_json(model: Path) -> str:
    (model / "config.json").write_text("{not json")
    return "config.json"


def truncated(model: Path) -> str:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "model.safetensors"


def lying_length(model: Path) -> str:
    file = model / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    return "model.safetensors"


def absent_shard(model: Path) -> str:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = load_file(model / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    where["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return "model-00002-of-00002.safetensors"


def shard_outside(model: Path) -> str:
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model.parent / "away.safetensors")
    where = dict.fromkeys(names, "../away.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return "away.safetensors"


def unknown_architecture(model: Path) -> str:
    edit_config(model, model_type="llama99", architectures=["Llama99ForCausalLM"])
    return "llama99"


def remote_code(model: Path) -> str:
    edit_config(
        model,
        model_type="mine",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    (model / "code.py").write_text("raise SystemExit('this must never run')")
    return "trust-remote-code"


def strange_rope(model: Path) -> str:
    edit_config(model, rope_parameters={"rope_type": "\x1b]0;owned\x07\x1b[31mX"})
    return "config.json"


def strange_architectures(model: Path) -> str:
    edit_config(model, architectures={"a": 1}, model_type="llama99")
    return "llama99"


def no_tokenizer(model: Path) -> str:
    for file in model.glob("tokenizer*"):
        file.unlink()
    return "tokenizer"


def missing_tensor(model: Path) -> str:
    state = load_file(model / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return "model.layers.1.mlp.up_proj"


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (print, ("a pickle ran code",))


def unsafe_pickle(model: Path) -> str:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    return "pytorch_model.bin"


@pytest.mark.parametrize(
    "spoil",
    [
        no_config,
        config_is_not_json,
        truncated,
        lying_length,
        absent_shard,
        shard_outside,
        unknown_architecture,
        remote_code,
        strange_rope,
        strange_architectures,
        no_tokenizer,
        missing_tensor,
        unsafe_pickle,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_spoilt_checkpoint_is_one_sentence_and_exit_code_3(
    spoil: Callable[[Path], str], model: Path, prose: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = spoil(model)
    opening, _ = open_it(model, settings(prose))
    assert opening.status == "failed"
    assert named in opening.message
    assert "\n" not in opening.message
    assert opening.exit_code == 3
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert "a pickle ran code" not in printed.out


def encoder_decoder(model: Path) -> str:
    edit_config(model, model_type="t5", architectures=["T5ForConditionalGeneration"])
    return "'t5' is an encoder-decoder"


def no_language_model(model: Path) -> str:
    edit_config(model, model_type="vit", architectures=["ViTModel"])
    return "no causal language model for model_type 'vit'"


def another_head(model: Path) -> str:
    edit_config(model, architectures=["LlamaForSequenceClassification"])
    return "LlamaForSequenceClassification"


def stale_quantiser(model: Path) -> str:
    edit_config(model, quantization_config={"quant_method": "gptq"})
    return "remove quantization_config"


def unknown_codes(model: Path) -> str:
    state = load_file(model / "model.safetensors")
    for name in [name for name in state if "_proj" in name]:
        state[name.replace(".weight", ".W_q")] = state.pop(name).to(torch.uint8)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return "W_q"


@pytest.mark.parametrize(
    "spoil",
    [encoder_decoder, no_language_model, another_head, stale_quantiser, unknown_codes],
    ids=lambda spoil: spoil.__name__,
)
def test_what_cannot_be_measured_is_refused_with_files_alone_too(
    spoil: Callable[[Path], str], model: Path, prose: Path
) -> None:
    """In the same words as by commands that run the model."""
    named = spoil(model)
    said = set()
    for with_model in (False, True):
        client = in_process(str(model))
        try:
            client.send(p.Open(str(model), settings(prose), model=with_model))
            last = until(client, ended("open"))[-1]
        finally:
            client.close()
        assert isinstance(last, p.JobEnded)
        assert (last.status, last.exit_code) == ("failed", 3)
        said.add(last.message)
    (sentence,) = said
    assert named in sentence
    assert inspect_headers(str(model)).problem == sentence


@pytest.mark.parametrize("spoil", [unknown_architecture, remote_code])
def test_files_of_an_unknown_architecture_are_read_with_a_warning(
    spoil: Callable[[Path], str], model: Path, prose: Path
) -> None:
    named = spoil(model)
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose), model=False))
        events = until(client, ended("open"))
    finally:
        client.close()
    (warning,) = [event for event in events if isinstance(event, p.Notice)]
    assert warning.level == "warning"
    assert named in warning.message


@pytest.mark.parametrize("command", ["triage", "sweep"])
def test_control_characters_of_a_checkpoint_never_reach_the_terminal(
    command: str, model: Path, prose: Path, tmp_path: Path
) -> None:
    strange_rope(model)
    said = tmp_path / "said"
    process = forked.qtui(command, str(model), "--text", str(prose), said=said)
    process.join()
    assert process.exitcode == (0 if command == "triage" else 3)
    assert said.read_bytes()
    assert b"\x1b" not in said.read_bytes()
    assert b"Traceback" not in said.read_bytes()


def test_a_missing_folder_says_so(tmp_path: Path, prose: Path) -> None:
    opening, _ = open_it(tmp_path / "nothing", settings(prose))
    assert "no such folder" in opening.message
    assert opening.exit_code == 3


def test_a_hub_id_while_offline_says_so(prose: Path) -> None:
    opening, _ = open_it("nobody/nothing-1B", settings(prose))
    assert "HF_HUB_OFFLINE" in opening.message
    assert opening.exit_code == 3


def test_safe_pickles_load(model: Path, prose: Path) -> None:
    state = load_file(model / "model.safetensors")
    torch.save(state, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    opening, events = open_it(model, settings(prose))
    assert opening.status == "done", opening.message
    assert facts(events, p.Sensitivity)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"too short", "fewer than one window"),
        (b"", "empty"),
        (b"\xff\xfe\x00bad", "not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(
    content: bytes, says: str, model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    opening, _ = open_it(model, settings(text))
    assert says in opening.message
    assert opening.exit_code == 3


def test_a_missing_text_says_so(model: Path, tmp_path: Path) -> None:
    opening, _ = open_it(model, settings(tmp_path / "nothing.txt"))
    assert "nothing.txt" in opening.message
    assert opening.exit_code == 3


def test_nan_and_inf_are_flagged_and_measured_around(model: Path, prose: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, :3] = torch.tensor([torch.nan, torch.inf, 1.0])
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose)))
        client.send(p.Triage())
        client.send(p.Sweep())
        events = until(client, ended("sweep"))
    finally:
        client.close()
    flagged = {f.layer: f for f in facts(events, p.LayerWeights) if isinstance(f, p.LayerWeights)}
    row = flagged["model.layers.1.mlp.up_proj"]
    assert (row.nan, row.inf) == (1, 1)
    assert sum(f.nan + f.inf for f in flagged.values()) == 2
    notices = [e.message for e in events if isinstance(e, p.Notice)]
    assert any("model.layers.1.mlp.up_proj.weight has 2" in m for m in notices), notices
    measured = [f for f in facts(events, p.Sensitivity) if isinstance(f, p.Sensitivity)]
    assert len(measured) == len(flagged)
    assert all(f.kl == f.kl and f.kl >= 0 for f in measured)


def test_more_memory_than_there_is_is_said_before_loading(
    model: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.model.load.memory_free", lambda device: 1000)
    opening, events = open_it(model, settings(prose))
    assert opening.exit_code == 4
    assert "GiB" in opening.message
    stages = [e.name for e in events if isinstance(e, p.Stage)]
    assert "loading weights" not in stages


def test_unknown_device_and_dtype_are_usage_errors(model: Path, prose: Path) -> None:
    for chosen in (settings(prose, device="tpu"), settings(prose, dtype="int7")):
        opening, _ = open_it(model, chosen)
        assert opening.exit_code == 2


def test_rows_stand_before_the_model_has_loaded(model: Path, prose: Path) -> None:
    client = in_process(str(model))
    try:
        client.send(p.Open(str(model), settings(prose)))
        events = until(client, ended("open"))
    finally:
        client.close()
    kinds = [type(e).__name__ for e in events]
    assert kinds.index("LayersListed") < kinds.index("ModelReady")
    assert events[kinds.index("LayersListed") + 1 :]
    stages = [e.name for e in events if isinstance(e, p.Stage)]
    assert stages.index("reading headers") < stages.index("loading weights")
    assert kinds.count("LayersListed") == 1  # the files' rows were the model's rows


@pytest.mark.parametrize("arch", sorted(tiny.ARCHITECTURES))
def test_rows_of_the_files_are_the_rows_of_the_model(
    arch: str, tmp_path: Path, prose: Path
) -> None:
    source = tiny.build(arch, tmp_path / arch)
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        events = until(client, ended("open"))
        listed = [e for e in events if isinstance(e, p.LayersListed)]
        for first, second in pairwise(listed):
            assert sorted(first.names) == sorted(second.names)
    finally:
        client.close()
