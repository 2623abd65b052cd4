"""Whole GGUF files: what llama.cpp's converter would write, with the weights that were measured."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint
from engine.client import in_process
from engine.errors import CheckpointError, EngineError, FormatError, UsageError
from engine.export.gguf import writer
from engine.export.load_check import NotReadBack
from engine.export.refusal import NotExportable
from engine.formats.grammar import parse_format
from engine.model.load import load_network, load_tokenizer
from engine.quant.quantize import dequantized
from tests import tiny
from tests.checkpoint.gguf.convert import convert
from tests.checkpoint.gguf.models import FAMILIES, TEXT, build, logits
from tests.drive import ended, settings, until
from tests.export.exporting import export_checkpoint

WIDE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64
}  # fmt: skip
"""Rows that the super-blocks of 256 divide."""
MIX = ("q4_k", "q8_0", "kept", "q6_k", "iq4_xs", "fp16", "q5_1", "q3_k", "bf16", "q2_k", "iq3_s")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(scope="module")
def llama(home: Path) -> Path:
    return build("llama", home / "llama", **WIDE, tie_word_embeddings=False)


def mix_of(folder: Path, *, tied: bool) -> dict[str, str]:
    """Another format for every layer; one for both of a tied head and embedding."""
    rows = list_layers(open_checkpoint(folder))
    found = {row.name: MIX[at % len(MIX)] for at, row in enumerate(rows)}
    if tied:
        ends = [row.name for row in rows if row.role in ("head", "embedding")]
        found |= dict.fromkeys(ends, "q6_k")
    return {name: held for name, held in found.items() if held != "kept"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_what_the_converter_would_write(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    done = export_checkpoint(open_checkpoint(folder), {}, tmp_path / "x.gguf", "gguf", check=True)
    assert done.folder == tmp_path / "x.gguf"
    ours = GGUFReader(tmp_path / "x.gguf")
    theirs = GGUFReader(convert(folder, tmp_path / "reference.gguf"))
    found = {each.name: each for each in ours.tensors}
    expected = {each.name: each for each in theirs.tensors}
    assert set(found) == set(expected)
    for name, each in expected.items():
        assert found[name].shape.tolist() == each.shape.tolist()
        assert found[name].tensor_type == each.tensor_type
        assert np.array_equal(found[name].data, each.data), name
    values = {key: field.contents() for key, field in ours.fields.items()}
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and not key.endswith((".scores", ".token_type")):
            assert values[key] == field.contents(), key
    scores = values.get("tokenizer.ggml.scores")
    if scores is not None:  # their order is all that counts
        reference = theirs.fields["tokenizer.ggml.scores"].contents()
        merged = [i for i, score in enumerate(scores) if score > -1e6]
        assert [scores[i] for i in merged] == [reference[i] for i in merged]
    assert values["general.type"] == "model"


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "mixtral", "qwen3moe"]
)
def test_every_weight_of_a_mix_is_read_as_it_was_measured(family: str, tmp_path: Path) -> None:
    sizes = {"n_embd": 256, "n_layer": 2} if family == "gpt2" else dict(WIDE)
    sizes |= {"head_dim": 256} if family == "gemma2" else {}
    sizes |= {"moe_intermediate_size": 256} if family == "qwen3moe" else {}
    folder = build(family, tmp_path / family, **sizes)
    checkpoint = open_checkpoint(folder)
    tied = "lm_head.weight" not in checkpoint.tensors
    recipe = mix_of(folder, tied=tied)
    file = tmp_path / "mix.gguf"
    done = export_checkpoint(checkpoint, recipe, file, "gguf", check=True)
    formats = {name: parse_format(held) for name, held in recipe.items()}
    assert set(done.quantised) == {name for name, fmt in formats.items() if not fmt.kept}
    assert any("read back" in note for note in done.notes)

    reference = load_network(folder, device="cpu")
    rows = {row.name: row for row in list_layers(checkpoint)}
    stored = open_checkpoint(file)
    changed: dict[str, torch.Tensor] = {}
    by_reader = {each.name: each for each in GGUFReader(file).tensors}
    for name, fmt in formats.items():
        weight = reference.weight(name).float()
        measured = dequantized(weight, fmt, torch.float16)
        tensor = stored.stored[rows[name].parts[0]]  # type: ignore[attr-defined]
        assert tensor.type.name == {"fp16": "f16", "bf16": "bf16"}.get(fmt.name, fmt.name)
        read = by_reader[tensor.name]
        values = torch.from_numpy(np.array(dequantize(read.data, read.tensor_type)))
        if "gate_exps" in tensor.name:  # transformers has them and the ups in one
            ups = by_reader[tensor.name.replace("gate", "up")]
            up = torch.from_numpy(np.array(dequantize(ups.data, ups.tensor_type)))
            values = torch.cat([values, up], 1)
        change = stored.architecture.change(tensor.name)  # type: ignore[attr-defined]
        if change in ("query rows", "key rows"):
            heads = 4 if change == "query rows" else 2
            values = values.reshape(heads, -1, 2, 256).transpose(1, 2).reshape(-1, 256)
        assert torch.equal(values, measured), name
        changed[name] = measured
    network = load_network(file, device="cpu")
    ids = tiny.ids(2, 40)
    with reference.holding(changed):
        assert torch.equal(logits(network.model, ids), logits(reference.model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_comes_back(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    file = tmp_path / "x.gguf"
    export_checkpoint(open_checkpoint(folder), {}, file, "gguf")
    ours, theirs = load_tokenizer(file), load_tokenizer(folder)
    for text in (TEXT, "", " two  spaces", "the quick<|im|>end <tool> x", "12 345 6789"):
        assert ours(text).input_ids == theirs(text).input_ids
    assert ours.chat_template == theirs.chat_template


def test_what_a_file_cannot_hold_is_named_with_the_nearest(llama: Path, out: Path) -> None:
    names = [row.name for row in list_layers(open_checkpoint(llama)) if row.role == "linear"]
    recipe = {
        names[0]: "int4-g128", names[1]: "q4_k", names[2]: "nf4", names[3]: "int8+gptq",
    }  # fmt: skip
    with pytest.raises(NotExportable) as caught:
        export_checkpoint(open_checkpoint(llama), recipe, out / "x.gguf", "gguf")
    assert set(caught.value.refused) == {names[0], names[2], names[3]}
    assert "GGUF files have no int4" in caught.value.refused[names[0]]
    assert caught.value.nearest[names[3]] == "q8_0"
    assert not any(out.iterdir())


def test_blocks_must_divide_the_row(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "narrow")
    name = next(row.name for row in list_layers(open_checkpoint(folder)) if row.role == "linear")
    with pytest.raises(NotExportable, match="256"):
        export_checkpoint(open_checkpoint(folder), {name: "q4_k"}, tmp_path / "x.gguf", "gguf")


def test_a_tied_head_and_embedding_have_one_format(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "tied", **WIDE)
    with pytest.raises(NotExportable, match="one tensor"):
        export_checkpoint(open_checkpoint(folder), {"lm_head": "q6_k"}, tmp_path / "x.gguf", "gguf")
    both = {"lm_head": "q6_k", "model.embed_tokens": "q6_k"}
    export_checkpoint(open_checkpoint(folder), both, tmp_path / "x.gguf", "gguf", check=True)
    found = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "x.gguf").tensors}
    assert found["token_embd.weight"] == "Q6_K"
    assert "output.weight" not in found


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "not gelu"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "every 6th block"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention of GPT-2"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic'",
        ),
        ("gemma", {"tie_word_embeddings": False}, "from the embedding"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3moe", {"mlp_only_layers": [1]}, "experts in every block"),
    ],
)
def test_a_model_that_llama_cpp_would_run_otherwise_is_refused(
    family: str, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = build(family, tmp_path / "model", **fields)
    name = next(row.name for row in list_layers(open_checkpoint(folder)) if row.block == 0)
    with pytest.raises(NotExportable, match=said):
        export_checkpoint(open_checkpoint(folder), {name: "fp16"}, tmp_path / "x.gguf", "gguf")


def test_other_architectures_and_tokenizers_are_refused(tmp_path: Path) -> None:
    other = tiny.build("opt", tmp_path / "opt")
    name = next(row.name for row in list_layers(open_checkpoint(other)) if row.block == 0)
    with pytest.raises(NotExportable, match="model_type 'opt'"):
        export_checkpoint(open_checkpoint(other), {name: "q8_0"}, tmp_path / "x.gguf", "gguf")
    unmerged = tiny.build("llama", tmp_path / "llama")
    with pytest.raises(CheckpointError, match="has no merges"):
        export_checkpoint(open_checkpoint(unmerged), {}, tmp_path / "x.gguf", "gguf")
    with pytest.raises(UsageError, match="no layer 'x'"):
        export_checkpoint(open_checkpoint(unmerged), {"x": "q8_0"}, tmp_path / "x.gguf", "gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"model": {"byte_fallback": True}}, "bytes in place of unknown letters"),
        ({"normalizer": {"type": "Lowercase"}}, "changes text before cutting it"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "by another rule than spaces"),
    ],
)
def test_unigrams_that_llama_cpp_would_cut_otherwise_are_refused(
    part: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = build("llama-unigram", tmp_path / "model", num_hidden_layers=1)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    for key, value in part.items():
        document[key] = {**document[key], **value} if key == "model" else value
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=said):
        export_checkpoint(open_checkpoint(folder), {}, tmp_path / "x.gguf", "gguf")


def test_a_gguf_file_is_no_source(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    export_checkpoint(open_checkpoint(llama), {}, file, "gguf")
    with pytest.raises(CheckpointError, match="export the checkpoint that it was made from"):
        export_checkpoint(open_checkpoint(file), {}, tmp_path / "y.gguf", "gguf")


def test_a_window_that_llama_cpp_does_not_have_is_told(tmp_path: Path) -> None:
    folder = build("mistral", tmp_path / "model", sliding_window=8)
    done = export_checkpoint(open_checkpoint(folder), {}, tmp_path / "x.gguf", "gguf")
    assert any("sees the last 8 tokens" in note for note in done.notes)


def test_an_interruption_at_any_tensor_leaves_nothing(llama: Path, out: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []
    export_checkpoint(
        open_checkpoint(llama), {}, out / "whole.gguf", "gguf", check=True,
        on_progress=lambda _done, _total, what: seen.append(what),
    )  # fmt: skip
    (out / "whole.gguf").unlink()
    assert len(seen) > 30
    for last in range(0, len(seen), 7):
        calls = 0

        def stop(_done: int, _total: int, _what: str, last: int = last) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise Stop

        with pytest.raises(Stop):
            export_checkpoint(
                open_checkpoint(llama), {}, out / "x.gguf", "gguf", check=True,
                on_progress=stop,
            )  # fmt: skip
        assert not any(out.iterdir())


def test_a_full_disk_is_one_sentence(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_write_tensors", full)
        with pytest.raises(EngineError, match="cannot be written: No space left"):
            export_checkpoint(open_checkpoint(llama), {}, out / "x.gguf", "gguf")
    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(EngineError, match="GiB free"):
        export_checkpoint(open_checkpoint(llama), {}, out / "x.gguf", "gguf")
    assert not any(out.iterdir())


def test_a_file_that_exists_is_replaced_on_request_alone(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"mine")
    with pytest.raises(UsageError, match="overwrite"):
        export_checkpoint(open_checkpoint(llama), {}, file, "gguf")
    assert file.read_bytes() == b"mine"
    export_checkpoint(open_checkpoint(llama), {}, file, "gguf", overwrite=True)
    assert file.read_bytes().startswith(b"GGUF")
    with pytest.raises(UsageError, match="is a folder"):
        export_checkpoint(open_checkpoint(llama), {}, tmp_path, "gguf", overwrite=True)
    with pytest.raises(UsageError, match="own folder"):
        export_checkpoint(open_checkpoint(llama), {}, llama / "x.gguf", "gguf")


def test_other_weights_than_were_measured_are_not_left(
    llama: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.1.self_attn.q_proj"
    real = writer.stored_form

    def spoilt(*given: Any) -> Any:
        form = real(*given)
        whole = form.approx
        object.__setattr__(form, "approx", lambda: whole() + 1)
        return form

    monkeypatch.setattr(writer, "stored_form", spoilt)
    with pytest.raises(NotReadBack, match=name):
        export_checkpoint(
            open_checkpoint(llama), {name: "q4_k"}, out / "x.gguf", "gguf", check=True
        )
    assert not any(out.iterdir())


def test_the_engine_writes_a_file(llama: Path, tmp_path: Path) -> None:
    client = in_process(str(llama))
    try:
        client.send(p.Open(str(llama), settings(), model=False))
        until(client, ended("open"))
        out = tmp_path / "x.gguf"
        client.send(p.Export(out=str(out), format="q4_k", to="gguf"))
        seen = until(client, ended("export"))
        assert isinstance(seen[-1], p.JobEnded)
        assert seen[-1].status == "done", seen[-1].message
        written = next(each for each in seen if isinstance(each, p.Exported))
        assert written.codes
        assert any("llama-cli -m" in note for note in written.notes)
    finally:
        client.close()
    types = {each.name: each.tensor_type.name for each in GGUFReader(out).tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert types["token_embd.weight"] == types["blk.0.attn_norm.weight"] == "F32"


def test_codes_that_importance_weighs_are_written_as_they_were_found(
    llama: Path, prose: Path, tmp_path: Path
) -> None:
    name, out = "model.layers.0.mlp.down_proj", tmp_path / "x.gguf"
    client = in_process(str(llama))
    try:
        client.send(p.Open(str(llama), settings(prose, calib=str(prose), calib_tokens=1024)))
        client.send(p.Export(out=str(out), layers={name: "q4_k+imatrix"}, to="gguf"))
        end = until(client, ended("export"))[-1]
        assert isinstance(end, p.JobEnded)
        assert end.status == "done", end.message
    finally:
        client.close()
    found = {each.name: each for each in GGUFReader(out).tensors}["blk.0.ffn_down.weight"]
    assert found.tensor_type.name == "Q4_K"
    values = torch.from_numpy(np.array(dequantize(found.data, found.tensor_type)))
    weight = open_checkpoint(llama).read(f"{name}.weight").float()
    plain = dequantized(weight, parse_format("q4_k"), torch.float16)
    assert not torch.equal(values, plain)
    torch.testing.assert_close(values, plain, rtol=0, atol=float(weight.abs().max()) / 4)
    with pytest.raises(FormatError, match="not only on its weights"):
        export_checkpoint(
            open_checkpoint(llama), {name: "q4_k+imatrix"}, tmp_path / "y.gguf", "gguf"
        )


def test_a_tokenizer_that_llama_cpp_has_not_quite_is_told(tmp_path: Path) -> None:
    import json

    from transformers import LlamaTokenizer

    folder = build("llama-yarn", tmp_path / "model")
    state = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(each) for each in state["merges"]]
    # It puts a space before a text that begins with none; llama.cpp before every text.
    LlamaTokenizer(vocab=state["vocab"], merges=merges).save_pretrained(folder)
    done = export_checkpoint(open_checkpoint(folder), {}, tmp_path / "x.gguf", "gguf")
    assert any("other tokens" in note and "' a space before'" in note for note in done.notes)
    build("llama-yarn", tmp_path / "same")
    done = export_checkpoint(open_checkpoint(tmp_path / "same"), {}, tmp_path / "y.gguf", "gguf")
    assert not any("other tokens" in note for note in done.notes)
