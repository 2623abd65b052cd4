"""An inspection of a path before it is opened: what it is, or what is wrong, from headers alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.model.known_models import known_models
from engine.model.source import resolve_model
from engine.opening.inspect import inspect_headers
from engine.opening.inspection import Inspection, inspect_source
from tests import tiny
from tests.opening.test_opening import (
    absent_shard,
    config_is_not_json,
    edit_config,
    lying_length,
    no_config,
    no_tokenizer,
    remote_code,
    shard_outside,
    strange_architectures,
    truncated,
    unknown_architecture,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("sound") / "llama", dtype=torch.bfloat16)


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def printed(source: str) -> Inspection:
    told = subprocess.run(
        [sys.executable, "-P", "-m", "engine.opening.inspect", "--", source],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout.count(b"\n") == 1
    assert told.stderr == b""
    return msgspec.json.decode(told.stdout, type=Inspection)


def test_a_sound_checkpoint_is_described(model: Path) -> None:
    found = printed(str(model))
    state = load_file(model / "model.safetensors")
    assert (found.problem, found.advice, found.note) == ("", "", "")
    assert (found.name, found.path) == ("model", str(model))
    assert (found.architecture, found.dtype) == ("LlamaForCausalLM", "bfloat16")
    assert found.parameters == sum(t.numel() for t in state.values())
    assert found.bytes == 2 * found.parameters
    assert found.layers == 3 * 7 + 2


def test_the_demo_is_itself_whatever_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    found = inspect_headers("demo")
    assert (found.name, found.path, found.problem) == ("demo", str(DEMO_PATH), "")


@pytest.mark.parametrize(
    "spoil",
    [
        no_config, config_is_not_json, truncated, lying_length, absent_shard, shard_outside,
        unknown_architecture, remote_code, strange_architectures, no_tokenizer,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_what_opening_would_refuse_is_named(spoil, model: Path) -> None:  # type: ignore[no-untyped-def]
    named = spoil(model)
    found = inspect_headers(str(model))
    assert named in found.problem
    assert "\n" not in found.problem


def spoilt(model: Path, **config: object) -> str:
    edit_config(model, **config)
    return inspect_headers(str(model)).problem


def test_a_config_that_names_no_language_model_is_refused(model: Path) -> None:
    assert "no model_type" in spoilt(model, model_type=None)
    assert "causal language model" in spoilt(model, model_type="clip")
    assert "not a causal language model" in spoilt(
        model, model_type="llama", architectures=["LlamaForSequenceClassification"]
    )


def test_what_is_quantised_already_is_refused(model: Path) -> None:
    assert "'gptq'" in spoilt(model, quantization_config={"quant_method": "gptq"})
    state = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    state[name] = torch.zeros(64, 64, dtype=torch.int8)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    told = spoilt(model, quantization_config={"quant_method": "compressed-tensors"})
    assert name in told
    assert "compressed-tensors" in told


def test_trusted_code_is_no_problem(model: Path) -> None:
    remote_code(model)
    assert inspect_headers(str(model), trust_remote_code=True).problem == ""


def test_pickles_are_not_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"would be read only when it is opened")
    found = inspect_headers(str(model))
    assert found.problem == ""
    assert "pickle" in found.note
    assert "safetensors" in found.advice
    assert (found.bytes, found.parameters) == (36, 0)


def test_a_file_leads_to_its_folder(model: Path, tmp_path: Path) -> None:
    found = inspect_headers(str(model / "model.safetensors"))
    assert "is a file" in found.problem
    assert str(model) in found.advice
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    assert "GGUF" in inspect_headers(str(tmp_path / "some.gguf")).problem


def test_a_folder_of_gguf_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    assert "GGUF" in inspect_headers(str(tmp_path)).problem


def test_a_folder_above_a_checkpoint_leads_into_it(model: Path) -> None:
    found = inspect_headers(str(model.parent))
    assert "config.json is missing" in found.problem
    assert found.advice == f"open {model}"


def test_a_misspelt_folder_leads_to_its_neighbour(model: Path, tmp_path: Path) -> None:
    found = inspect_headers(str(tmp_path / "modle" / "deeper"))
    assert "no such folder" in found.problem
    assert str(model) in found.advice


def test_a_pipe_is_called_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = inspect_headers(str(pipe))
    assert found.problem == f"{pipe} is a pipe, neither a folder nor a GGUF file"
    assert not found.advice
    with pytest.raises(CheckpointError, match="is a pipe, neither"):
        resolve_model(str(pipe))


@pytest.mark.parametrize("source", ["", " ", "a" * 5000, "/a\0b", "no/such/thing", "~nobody-x/y"])
def test_any_text_is_answered_with_a_sentence(source: str) -> None:
    found = inspect_headers(source)
    assert found.problem
    assert found.source == source


def cached(hub: Path, sound: Path, *, refs: bool = True) -> Path:
    """A snapshot as the hub's client lays it down: links into ``blobs/``."""
    home = hub / "models--org--tiny-llama"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sound.iterdir())):
        shutil.copy(file, home / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    if refs:
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0123abcd")
    return snapshot


@pytest.mark.parametrize("refs", [True, False])
def test_a_hub_id_in_the_cache_is_described(no_cache: Path, sound: Path, refs: bool) -> None:
    snapshot = cached(no_cache, sound, refs=refs)
    found = inspect_headers("org/tiny-llama")
    assert (found.name, found.path, found.problem) == ("org/tiny-llama", str(snapshot), "")
    assert "in the hub's cache" in found.note
    assert found.layers == 23


def test_a_hub_id_that_is_not_in_the_cache_would_be_downloaded(
    no_cache: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(no_cache, sound)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in inspect_headers("org/tiny-lama").problem
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = inspect_headers("org/tiny-lama")
    assert found.problem == ""
    assert "opening it downloads it" in found.note
    assert "org/tiny-llama" in found.advice


def test_a_download_that_was_broken_off_is_a_problem_only_offline(
    no_cache: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cached(no_cache, sound) / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no weights" in inspect_headers("org/tiny-llama").problem
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = inspect_headers("org/tiny-llama")
    assert found.problem == ""
    assert "downloads the rest" in found.note


def test_the_table_of_known_models_is_that_of_transformers() -> None:
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found = known_models()
    assert found.configs == dict(CONFIG_MAPPING_NAMES)
    assert found.causal == dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert found.seq2seq == dict(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    assert found.multimodal == dict(modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_every_architecture_that_is_read_is_supported(arch: str, tmp_path: Path) -> None:
    found = inspect_headers(str(tiny.build(arch, tmp_path)))
    assert found.problem == ""
    assert found.layers


# --- the process ---------------------------------------------------------------------------------


async def test_the_look_comes_from_a_process_of_its_own(model: Path) -> None:
    assert await inspect_source(str(model)) == inspect_headers(str(model))
    assert (await inspect_source("--no-option")).problem


async def test_what_goes_wrong_with_the_process_is_the_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in (await inspect_source("demo")).problem
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert "exit code 1" in (await inspect_source("demo")).problem


def sleeper(tmp_path: Path) -> Path:
    """Stands for a Python whose inspection never ends; it writes its number down."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\n"
                       f"mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600\n")  # fmt: skip
    program.chmod(0o700)
    return program


def assert_dead(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


async def test_a_look_that_takes_too_long_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(sleeper(tmp_path)))
    found = await inspect_source("demo", timeout=1.0)
    assert "within 1 s" in found.problem
    assert_dead(tmp_path)


async def test_a_look_that_is_cancelled_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(sleeper(tmp_path)))
    looking = asyncio.create_task(inspect_source("demo", timeout=600))
    async with asyncio.timeout(60):
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert_dead(tmp_path)


def test_names_with_control_characters_survive_as_data(tmp_path: Path, sound: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "a\x1b[31mb"))
    assert printed(str(folder)).name == "a\x1b[31mb"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
