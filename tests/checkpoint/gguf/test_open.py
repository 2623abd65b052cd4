"""A GGUF file opens by itself: config, names, weights, tokenizer, for every family."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.checkpoint.gguf import GgufCheckpoint
from engine.errors import CheckpointError
from engine.model.load import load_network, load_tokenizer
from engine.opening.inspect import inspect_headers
from tests import tiny
from tests.checkpoint.gguf.convert import convert
from tests.checkpoint.gguf.files import File, string
from tests.checkpoint.gguf.models import FAMILIES, TEXT, build, logits

EXACT = {"llama3": 2e-5}
"""Factors of positions are applied in another order; all others are the same to the last bit."""
NOT_BY_TRANSFORMERS = {
    "llama3": "it takes no notice of rope_freqs",
    "llama-yarn": "it takes no notice of scaled positions",
    "phi3-long": "it takes no notice of rope_factors",
    "qwen3": "it takes no notice of the width of a head",
    "gemma": "it does not know the architecture",
    "phi3": "its default of a token for padding is beyond a small vocabulary",
    "gpt2": "it takes other sizes than the file's",
    "mixtral": "it takes it for a Llama without experts",
    "qwen3moe": "it takes no notice of the width of an expert",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder and file of a family, made once."""
    known: dict[str, tuple[Path, Path]] = {}

    def of(family: str) -> tuple[Path, Path]:
        if family not in known:
            home = tmp_path_factory.mktemp(family)
            folder = build(family, home / "model")
            known[family] = folder, convert(folder, home / f"{family}.gguf")
        return known[family]

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_and_layers_are_those_of_the_folder(family: str, made: Any) -> None:
    folder, file = made(family)
    ours, theirs = open_checkpoint(file), open_checkpoint(folder)
    assert isinstance(ours, GgufCheckpoint)
    assert set(ours.tensors) == set(theirs.tensors)
    assert ours.parameters == theirs.parameters
    for name in theirs.tensors:
        found, expected = ours.read(name), theirs.read(name)
        assert ours.tensors[name].shape == expected.shape
        if "norm" in name and "gemma" in family:
            torch.testing.assert_close(found, expected, rtol=0, atol=1.2e-7)
            assert torch.equal(found + 1, expected + 1)  # all that the model uses
        else:
            assert torch.equal(found, expected), name
    rows = {row.name: row for row in list_layers(theirs)}
    assert {row.name: row.shape for row in list_layers(ours)} == {
        name: row.shape for name, row in rows.items()
    }
    for row in list_layers(ours):
        assert torch.equal(read_layer(ours, row), read_layer(theirs, rows[row.name]))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_folder(family: str, made: Any) -> None:
    folder, file = made(family)
    ids = tiny.ids(2, 48)
    expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)
    network = load_network(file, device="cpu")
    torch.testing.assert_close(
        logits(network.model, ids), expected, rtol=0, atol=EXACT.get(family, 0.0)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_that_of_the_folder(family: str, made: Any) -> None:
    folder, file = made(family)
    ours, theirs = load_tokenizer(file), AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, "", " two  spaces", "the quick<|im|>end <tool> x", "12 345 6789", "\n\n\n"):
        expected = theirs(text).input_ids
        assert ours(text).input_ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected)
    assert ours.chat_template == theirs.chat_template
    for name in ("bos_token", "eos_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("family", [each for each in FAMILIES if each not in NOT_BY_TRANSFORMERS])
def test_transformers_reads_the_same_from_the_file(family: str, made: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers wants it for GGUF files")
    _, file = made(family)
    ids = tiny.ids(2, 48)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    ours = load_network(file, device="cpu").model
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), rtol=0, atol=1e-6)


def changed(file: Path, out: Path, **keys: Any) -> Path:
    """A file with some keys replaced, or left out where None is given."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(file)
    writer = GGUFWriter(out, "llama")
    for name, found in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = keys.get(name.replace(".", "_"), found.contents())
        if value is not None:
            inner = found.types[-1] if len(found.types) > 1 else None
            writer.add_key_value(name, value, found.types[0], inner)
    for each in reader.tensors:
        writer.add_tensor(each.name, each.data, raw_dtype=each.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama_block_count": None}, "no 'llama.block_count'"),
        ({"llama_block_count": 2**31 - 1}, "of 3 blocks"),
        ({"llama_embedding_length": 2**30}, "llama.embedding_length"),
        ({"llama_feed_forward_length": 2**31 - 1}, "llama.feed_forward_length"),
        ({"llama_attention_head_count": 2**30, "llama_rope_dimension_count": None}, "head_count"),
        ({"llama_attention_head_count": 0}, "'llama.attention.head_count' as 0"),
        ({"llama_attention_head_count_kv": 3}, "head_count_kv"),
        ({"llama_rope_dimension_count": 8}, "turns 8 of 16"),
        ({"llama_attention_layer_norm_rms_epsilon": float("nan")}, "as nan, not as a number"),
    ],
)
def test_settings_that_are_missing_or_none_are_named(
    keys: dict[str, Any], said: str, made: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(changed(made("llama")[1], tmp_path / "x.gguf", **keys))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tokenizer_ggml_model": "rwkv"}, "of the kind 'rwkv'"),
        ({"tokenizer_ggml_pre": "other"}, "by the rule 'other'"),
        ({"tokenizer_ggml_merges": None}, "no 'tokenizer.ggml.merges'"),
        ({"tokenizer_ggml_eos_token_id": 9999}, "eos_token_id' as 9999, of 320"),
        ({"tokenizer_ggml_token_type": [1, 2]}, "320 tokens and 2 types"),
    ],
)
def test_tokenizers_that_are_not_read_are_named(
    keys: dict[str, Any], said: str, made: Any, tmp_path: Path
) -> None:
    file = changed(made("llama")[1], tmp_path / "x.gguf", **keys)
    with pytest.raises(CheckpointError, match=said):
        load_tokenizer(file)
    assert said.strip("'") in inspect_headers(str(file)).problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tokenizer_ggml_scores": None}, "320 tokens and 0 scores"),
        ({"tokenizer_ggml_unknown_token_id": 999}, "unknown_token_id' as 999, of 320"),
    ],
)
def test_unigrams_that_are_not_read_are_named(
    keys: dict[str, Any], said: str, made: Any, tmp_path: Path
) -> None:
    file = changed(made("llama-unigram")[1], tmp_path / "x.gguf", **keys)
    with pytest.raises(CheckpointError, match=said):
        load_tokenizer(file)


@pytest.mark.parametrize("token", ["<0x-1>", "<0xZZ>", "", "\x1b[31m", "a b"])
def test_odd_tokens_and_templates_are_carried_as_text(
    token: str, made: Any, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    file = made("mistral")[1]
    tokens = GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    out = changed(file, tmp_path / "x.gguf", tokenizer_ggml_tokens=[*tokens[:-1], token])
    assert open_checkpoint(out).tokenizer()[0]["model"]["vocab"][token] == len(tokens) - 1
    template = changed(made("llama")[1], tmp_path / "y.gguf", tokenizer_chat_template=evil)
    assert load_tokenizer(template).chat_template == evil


@pytest.mark.parametrize("tokens", [["a" * 10**6] + ["b"] * 319, ["c" * 900] * 10_000])
def test_endless_pieces_are_refused_at_once(tokens: list[str], made: Any, tmp_path: Path) -> None:
    numbered = [f"{token}{at}" for at, token in enumerate(tokens)]
    file = changed(
        made("mistral")[1], tmp_path / "x.gguf", tokenizer_ggml_tokens=numbered,
        tokenizer_ggml_scores=[0.0] * len(tokens), tokenizer_ggml_token_type=[1] * len(tokens),
    )  # fmt: skip
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="letters together"):
        open_checkpoint(file).tokenizer()  # type: ignore[attr-defined]
    assert time.process_time() - begun < 2


def test_other_architectures_and_kinds_are_named(tmp_path: Path) -> None:
    for keys, said in (
        ([string("general.architecture", "mamba")], "architecture 'mamba'"),
        ([string("general.type", "mmproj")], "of the kind 'mmproj'"),
        ([string("general.name", "x")], "no 'general.architecture'"),
    ):
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(File(keys=keys).write(tmp_path / "x.gguf"))


def test_a_tensor_that_the_architecture_lacks_is_named(made: Any, tmp_path: Path) -> None:
    raw = made("llama")[1].read_bytes()
    file = tmp_path / "x.gguf"
    file.write_bytes(raw.replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_noun.weight"))
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_noun\.weight"):
        open_checkpoint(file)


def test_the_name_of_a_file_is_no_part_of_its_fingerprint(made: Any, tmp_path: Path) -> None:
    file = made("llama")[1]
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes())
    assert open_checkpoint(other).fingerprint == open_checkpoint(file).fingerprint
    other.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert open_checkpoint(other).fingerprint != open_checkpoint(file).fingerprint


def test_a_file_is_inspected_before_it_is_opened(made: Any, tmp_path: Path) -> None:
    folder, _ = made("llama")
    file = convert(folder, tmp_path / "q.gguf", "Q8_0")
    found = inspect_headers(str(file))
    assert (found.problem, found.name, found.dtype) == ("", "q", "q8_0")
    assert found.note == "stored in GGUF (q8_0), dequantised as reference"
    network = load_network(file, device="cpu")
    assert "stored in GGUF (q8_0), dequantised as reference" in network.notes


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama_expert_count": 5}, r"blk\.0\.ffn_gate_exps\.weight' as \[4, 128, 64\]"),
        ({"llama_expert_used_count": 5}, "expert_used_count' as 5, of 4"),
        ({"llama_expert_used_count": None}, "no 'llama.expert_used_count'"),
        ({"llama_expert_count": 2**30}, "of 1073741824 experts"),
        ({"llama_expert_count": 0}, "ffn_gate_exps"),
        ({"llama_feed_forward_length": 64}, "llama.expert_feed_forward_length"),
    ],
)
def test_experts_that_are_not_there_are_named(
    keys: dict[str, Any], said: str, made: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(changed(made("mixtral")[1], tmp_path / "x.gguf", **keys))
