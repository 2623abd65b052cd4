"""A runtime in a process of its own: what it says is counted, however it ends is a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

import engine
from engine.errors import CheckpointError, EngineError, OutOfMemoryError, UsageError
from engine.report.bench_parts import bench_document
from engine.runtimes.artefact import find_artefact
from engine.runtimes.devices import visible
from engine.runtimes.results import Bench, Progress
from engine.runtimes.running import Ask, bench
from tests.runtimes import pretended


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" * 25)
    return file


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with packages that look like cyllama and vLLM, and no program on the path."""
    folder = pretended.environment(
        tmp_path / "packages", cyllama=pretended.CYLLAMA, vllm=pretended.VLLM
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path))
    return folder


def timed(ask: Ask) -> tuple[Bench, list[Progress]]:
    steps, told = bench(ask), []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            return end.value, told


def asked(artefact: Path, **further: object) -> Ask:
    usual = {"prompt": 32, "new": 16, "repeats": 2, "warmup": 1, "threads": 1}
    return Ask(artefact=str(artefact), **{**usual, **further})  # type: ignore[arg-type]


@pytest.mark.usefixtures("there")
def test_every_token_of_every_batch_is_decoded_and_counted(gguf: Path) -> None:
    found, told = timed(asked(gguf, batches=(4, 1), prompt=600))
    assert found.runtime == "llama.cpp"
    assert found.bytes == 100
    assert found.about["version"] == "cyllama"
    assert found.about["device"] == "cpu"
    assert [each.batch for each in found.batches] == [1, 4]
    for each in found.batches:
        assert [run.generated for run in each.runs] == [16 * each.batch] * 2
        assert len(each.latencies()) == 32
        assert each.peak_bytes is not None
    assert "batch 1, warm-up" in [each.subject for each in told]
    assert told[-1].total == 6


@pytest.mark.usefixtures("there")
def test_the_library_returns_the_document(gguf: Path) -> None:
    document = engine.bench(str(gguf), batches=(2,), prompt=8, new=4, repeats=1)
    assert [each.batch for each in document.batches] == [2]
    with pytest.raises(UsageError, match="has no batch: it has runtime, batches"):
        engine.bench(str(gguf), batch=2)


@pytest.mark.usefixtures("there")
def test_vllm_is_stepped_and_prompts_that_waited_count_as_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345678")
    found, _ = timed(asked(folder, runtime="vllm", batches=(3,)))
    (batch,) = found.batches
    # Two prompts are run in the first step and one in the second, where the two have another token.
    assert [run.generated for run in batch.runs] == [3 * 17 - 5] * 2
    assert found.about["quantization"] == "gptq"
    assert found.about["dtype"] == "bfloat16"
    assert found.about["device"] == "cuda"


def test_llama_bench_is_used_where_no_package_is_there(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(pretended.LLAMA_BENCH, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("PYTHONPATH", "")
    document = bench_document(timed(asked(gguf))[0])
    assert document.version == "llama-bench 6000 (abc1234)"
    (batch,) = document.batches
    assert batch.prompt_tokens_per_s == pytest.approx((320 + 160) / 2)
    assert batch.tokens_per_s == pytest.approx((40 + 80) / 2)
    assert batch.tokens_per_s_se == pytest.approx(20)
    assert batch.p50_ms is msgspec.UNSET
    with pytest.raises(EngineError, match="runs one sequence"):
        timed(asked(gguf, batches=(1, 2)))
    with pytest.raises(EngineError, match="llama-bench failed: error: invalid parameter"):
        timed(asked(gguf, prompt=33))


def test_a_runtime_that_is_missing_is_named_with_what_to_install(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"pip install llama-cpp-python.*cyllama.*llama-bench"):
        timed(asked(gguf, python=sys.executable))


@pytest.mark.usefixtures("there")
def test_what_a_process_crashes_with_is_a_sentence(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND", "always crash")
    with pytest.raises(EngineError, match=r"crashed with SIGABRT \(loading.*about to crash"):
        timed(asked(gguf))
    monkeypatch.setenv("PRETEND", "exit")
    with pytest.raises(EngineError, match=r"exit status 3.*leaving early"):
        timed(asked(gguf))
    monkeypatch.setenv("PRETEND", "killed")
    with pytest.raises(OutOfMemoryError, match="was killed"):
        timed(asked(gguf))
    monkeypatch.setenv("PRETEND", "memory")
    with pytest.raises(OutOfMemoryError, match=r"no room.*lower --batch"):
        timed(asked(gguf))


@pytest.mark.usefixtures("there")
def test_a_crash_of_extra_kernels_is_told_and_timed_without_them(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND", "crash")
    found, _ = timed(asked(gguf))
    assert len(found.batches) == 1
    assert "SIGABRT" in found.notes[0]


@pytest.mark.usefixtures("there")
def test_closing_it_ends_the_process(gguf: Path) -> None:
    steps = bench(asked(gguf, repeats=10**6))
    next(steps)
    before = psutil.Process().children()
    steps.close()
    assert len(psutil.Process().children()) == len(before) - 1


@pytest.mark.usefixtures("there")
def test_nothing_is_imported_from_the_folder_it_is_started_in(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "cyllama", "importlib", "types", "runpy"):
        (gguf.parent / f"{name}.py").write_text("raise SystemExit(9)", encoding="utf-8")
    monkeypatch.chdir(gguf.parent)
    found, _ = timed(asked(gguf))
    assert found.about["version"] == "cyllama"


@pytest.mark.usefixtures("there")
def test_a_crash_is_told_though_what_the_runtime_started_lives_on(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND", "crash beside another")
    with pytest.raises(EngineError, match="crashed with SIGABRT"):
        timed(asked(gguf))


@pytest.mark.usefixtures("there")
def test_a_runtime_that_hangs_ends_with_whoever_asked(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND", "hang")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{os.getcwd()}")
    source = f"""
import psutil, time
from engine.runtimes.running import Ask, bench
steps = bench(Ask(artefact={str(gguf)!r}))
next(steps)
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        runtime = psutil.Process(int(asking.stdout.readline()))
        asking.kill()
    runtime.wait(60)


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ({"batches": (0,)}, "--batch has 0"),
        ({"prompt": 0}, "--prompt is 0"),
        ({"new": 0}, "--new is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"runtime": "ollama"}, "expected transformers, llama.cpp, vllm"),
        ({"runtime": "vllm"}, "use --runtime llama.cpp"),
        ({"python": "/nowhere/python"}, "is no interpreter"),
        ({"device": "gpu"}, "--device is 'gpu', expected auto"),
        ({"device": "cuda:1"}, "set CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    gguf: Path, further: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        next(bench(asked(gguf, **further)))


def test_a_gpu_is_one_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible(1) == "6"
    with pytest.raises(ValueError, match="no cuda:2"):
        visible(2)


def test_files_that_libraries_do_not_load_are_not_its_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for at, name in enumerate(("model", "consolidated", "adapter_model"), 1):
        (tmp_path / f"{name}.safetensors").write_bytes(b"x" * at)
    (tmp_path / "training_args.bin").write_bytes(b"pickle")
    assert find_artefact(str(tmp_path)).bytes == 1
    (tmp_path / "model.safetensors").unlink()
    assert find_artefact(str(tmp_path)).bytes == 5
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "consolidated.safetensors"}}')
    assert find_artefact(str(tmp_path)).bytes == 2
    for text, said in (('{"weight_map": {"a": "b.safetensors"}}', "missing"), ("[1]", "no index")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            find_artefact(str(tmp_path))
    index.unlink()
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        find_artefact(str(tmp_path))


def test_a_split_file_is_as_large_as_its_parts(tmp_path: Path) -> None:
    for at in (1, 2, 3):
        (tmp_path / f"m-0000{at}-of-00003.gguf").write_bytes(b"x" * at)
    (tmp_path / "other-00001-of-00002.gguf").write_bytes(b"y")
    found = find_artefact(str(tmp_path / "m-00002-of-00003.gguf"))
    assert found.path.name == "m-00001-of-00003.gguf"
    assert found.bytes == 6
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        find_artefact(str(tmp_path))
    with pytest.raises(CheckpointError, match="no file or folder"):
        find_artefact(str(tmp_path / "nothing"))
