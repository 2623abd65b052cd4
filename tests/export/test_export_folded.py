"""``+awq`` and ``+smooth`` as they ship: scales folded into the layer before, as measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.client import InProcess, in_process
from engine.errors import FormatError
from engine.export.folding import folds_of, why_not_folded
from engine.export.folds import with_rows
from engine.export.gptq.words import dequantised
from engine.formats.grammar import Format, parse_format
from engine.model.fold_groups import fold_groups
from engine.quant.methods.channel_scales import powers_of_two
from engine.quant.quantize import dequantized, stored_form
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import ended, facts, load, settings, until

SEQ_LEN, TOKENS = 32, 512
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 2, "num_key_value_heads": 4, "dtype": torch.float16}),
    "qwen3": ("qwen3", {"num_hidden_layers": 2, "dtype": torch.bfloat16}),
    # Codes of experts are turned into the checkpoint's dtype as they are read: no 16 bits here.
    "mixtral": ("mixtral", {"num_hidden_layers": 2}),
    "llama-float32": ("llama", {"num_hidden_layers": 2, "num_key_value_heads": 4}),
    "qwen3-float32": ("qwen3", {"num_hidden_layers": 2}),
    "gpt2": ("gpt2", {"n_layer": 2}),
}
Q, V, O = (f"model.layers.1.self_attn.{kind}_proj" for kind in "qvo")
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            arch, given = MODELS[name]
            made[name] = with_outliers(
                tiny.build(arch, tmp_path_factory.mktemp("folded") / name, **given)
            )
        return made[name]

    return of


def with_outliers(folder: Path) -> Path:
    """Norms that differ from 1, some channels large: what the methods are for."""
    path = folder / "model.safetensors"
    tensors, generator = load_file(path), torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        if "norm" in name or ".ln_" in name:
            other = torch.randn(tensor.shape, generator=generator) * 0.2
            other[:4] += 3
            tensors[name] = tensor + other.to(tensor.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def engine(sources: Callable[[str], Path], prose: Path) -> Iterator[Callable[[str], InProcess]]:
    running: list[InProcess] = []

    def of(name: str) -> InProcess:
        folder = sources(name)
        client = in_process(str(folder))
        running.append(client)
        client.send(p.Open(str(folder), settings(prose, calib=str(prose), calib_tokens=1024)))
        return client

    yield of
    for client in running:
        client.close()


def nll(model: Any, folder: Path, text: Path) -> float:
    """By plain transformers, on the windows that the engine cuts."""
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8")).input_ids
    windows = torch.tensor(ids[:TOKENS]).view(-1, SEQ_LEN)
    with torch.no_grad():
        logits: Any = model(input_ids=windows).logits[:, :-1]
    targets = windows[:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets))


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def as_read(folder: Path) -> Any:
    """A GPTQ folder as a plain model: every quantised weight as a reader of version 1 has it."""
    config = open_checkpoint(folder).config
    stored = load_file(folder / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        prefix, _, last = name.rpartition(".")
        if last == "qweight":
            parts = {k: stored[f"{prefix}.{k}"] for k in ("qweight", "qzeros", "scales", "g_idx")}
            bits = 32 * tensor.shape[0] // len(parts["g_idx"])
            tensors[f"{prefix}.weight"] = dequantised(parts, bits)
        elif last not in ("qzeros", "scales", "g_idx"):
            tensors[name] = tensor
    config.pop("quantization_config")
    from transformers import AutoConfig

    made = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert [name for name in missing if name != "lm_head.weight"] == []
    return model.eval()


def shipped(
    client: InProcess, to: str, out: Path, held: Mapping[str, str] | str
) -> tuple[p.RecipeScore, p.Exported]:
    given: dict[str, Any] = {"format": held} if isinstance(held, str) else {"layers": dict(held)}
    client.send(p.Evaluate(**given))
    score = facts(until(client, ended("evaluate")), p.RecipeScore)[-1]
    client.send(p.Export(out=str(out), to=to, **given))
    events = until(client, ended("export"))
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    assert end.status == "done", end.message
    assert isinstance(score, p.RecipeScore)
    return score, next(event for event in events if isinstance(event, p.Exported))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("llama", "int4-g32+awq"),
        ("llama", "int4-g32-sym+smooth.5+awq+clip+gptq"),
        ("llama", "fp8-e4m3+smooth.5"),
        ("qwen3", "int3-g32+awq+gptq:actorder"),
        ("mixtral", "int4-g32-sym+awq"),
    ],
)
def test_reloaded_by_plain_transformers_it_scores_what_was_measured(
    engine: Callable[[str], InProcess], prose: Path, tmp_path: Path, model: str, text: str
) -> None:
    score, written = shipped(engine(model), "checkpoint", tmp_path / "out", text)
    folding = [name for name, held in written.recipe.items() if held == text]
    absorbed = ("q_proj", "experts.down_proj" if model == "mixtral" else "up_proj", "down_proj")
    assert all(any(name.endswith(kind) for name in folding) for kind in absorbed)
    found = nll(plain(tmp_path / "out"), tmp_path / "out", prose)
    assert found == pytest.approx(score.nll, abs=1e-5)
    # The methods did something: without them it is another model.
    assert abs(score.dnll) > 1e-5


@pytest.mark.parametrize("kinds", [("q_proj", "k_proj", "v_proj"), ("down_proj",)])
def test_inputs_are_rounded_after_they_were_divided(
    engine: Callable[[str], InProcess],
    sources: Callable[[str], Path],
    prose: Path,
    tmp_path: Path,
    kinds: tuple[str, ...],
) -> None:
    """Layers of one kind alone: an input beside a tie may be rounded the other way, since a norm
    multiplies in another order, and what comes after amplifies it."""
    names = [row.name for row in list_layers(open_checkpoint(sources("llama")))]
    layers = {n: "int8+smooth.5+a8" for n in names if n.endswith(kinds) and ".0." in n}
    score, _written = shipped(engine("llama"), "checkpoint", tmp_path / "out", layers)
    found = nll(plain(tmp_path / "out"), tmp_path / "out", prose)
    assert found == pytest.approx(score.nll, abs=1e-5)


@pytest.mark.parametrize("text", ["int4-g32+awq", "int4-g32-sym+smooth.5+gptq"])
def test_a_reader_of_the_gptq_layout_scores_what_was_measured(
    engine: Callable[[str], InProcess], prose: Path, tmp_path: Path, text: str
) -> None:
    score, _written = shipped(engine("llama"), "gptq", tmp_path / "out", text)
    found = nll(as_read(tmp_path / "out"), tmp_path / "out", prose)
    assert found == pytest.approx(score.nll, abs=1e-5)


def test_what_absorbs_keeps_its_own_format(
    engine: Callable[[str], InProcess], prose: Path, tmp_path: Path
) -> None:
    """Kept, rounded to nearest, or solved: its part of the score does not change."""
    layers = {DOWN: "int4-g32+awq", UP: "int3-g32+gptq", O: "int4-g32+smooth.5"}
    score, _written = shipped(engine("llama"), "checkpoint", tmp_path / "out", layers)
    found = nll(plain(tmp_path / "out"), tmp_path / "out", prose)
    assert found == pytest.approx(score.nll, abs=1e-5)


@pytest.fixture
def opened(
    sources: Callable[[str], Path], prose: Path, tmp_path: Path
) -> Iterator[Callable[[str], Loaded]]:
    stores: list[FactStore] = []

    def of(name: str) -> Loaded:
        stores.append(FactStore(tmp_path / f"facts{len(stores)}.sqlite"))
        return load(sources(name), stores[-1], settings(prose))

    yield of
    for store in stores:
        store.close()


def some_scales(loaded: Loaded, fmt: Format) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Every layer that can fold, each group with a scale between 1/3 and 3."""
    generator, formats, scales = torch.Generator().manual_seed(1), {}, {}
    for name, group in fold_groups(loaded.network).items():
        if group.why_not:
            continue
        width = loaded.network.layers[name].shape[-1]
        scale = 3 ** (2 * torch.rand(width, generator=generator) - 1)
        scale = powers_of_two(scale) if group.kind == "layer" else scale
        scales[name] = scales.get(group.layers[0], scale)
        formats[name] = fmt
    return formats, scales


@pytest.mark.parametrize("model", ["llama-float32", "qwen3-float32", "mixtral", "gpt2"])
def test_folded_and_not_rounded_it_is_the_same_model(
    opened: Callable[[str], Loaded], sources: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    loaded, source = opened(model), open_checkpoint(sources(model))
    formats, scales = some_scales(loaded, parse_format("int4+awq"))
    refused = why_not_folded(loaded, formats)
    assert not refused
    folds = folds_of(loaded, formats, scales)
    assert folds.rows
    assert folds.tensors
    head = next(row for row in list_layers(source) if row.role == "head")
    tied = f"{head.name}.weight" not in source.tensors
    layers = [row for row in list_layers(source) if not (tied and row == head)]
    rows = {part: row for row in layers for part in row.parts}
    tensors: dict[str, Tensor] = {}
    for name in source.tensors:
        row = rows.get(name)
        whole = folds.read(source, name, row).to(torch.float32)
        if row is not None and row.name in folds.scales:
            scale = folds.scales[row.name]
            whole = whole * (scale[:, None] if row.transposed else scale)
        tensors[name] = whole
    folder = tmp_path / "folded"
    folder.mkdir()
    for file in source.folder.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    if tied:  # only the head is scaled
        whole = read_layer(source, head).to(torch.float32)
        tensors["lm_head.weight"] = whole * folds.scales[head.name]
        config = {**source.config, "tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = tiny.ids(2, 24)
    with torch.no_grad():
        expected = plain(sources(model))(input_ids=ids).logits
        found = plain(folder)(input_ids=ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_cannot_be_folded_is_refused_before_any_work(
    engine: Callable[[str], InProcess], tmp_path: Path
) -> None:
    cases = {
        "is given the same input": {Q: "int4-g32+awq"},
        "several of its rows share a scale": {DOWN: "int4-g32+awq", UP: "int8-tensor"},
        "has no scales of its rows": {O: "int4-g32+awq", V: "mxfp4"},
    }
    client = engine("llama")
    until(client, ended("open"))
    for why, layers in cases.items():
        client.send(p.Export(out=str(tmp_path / "out"), layers=layers))
        events = until(client, ended("export"))
        end = events[-1]
        assert isinstance(end, p.JobEnded)
        if "mxfp4" in layers.values():
            assert "bfloat16" in end.message
            continue
        assert (end.status, end.exit_code) == ("failed", 5), end.message
        assert why in end.message
        assert next(iter(layers)) in end.message
        assert not any(isinstance(event, p.Calibrated) for event in events)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("text", ["int4-g32", "int8", "int4-g64-sym+clip", "fp8-e4m3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_of_rows_change_scales_and_no_code(text: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 64, generator=generator)
    weight[3] = 0
    factor = 2.0 ** torch.randint(-3, 4, (16,), generator=generator)
    fmt = parse_format(text)
    form = stored_form(weight, fmt, dtype)
    found = with_rows(form, factor, "layer")
    assert torch.equal(found.codes.float(), form.codes.float())  # type: ignore[union-attr]
    assert torch.equal(found.approx(), form.approx() * factor[:, None])
    assert torch.equal(found.approx(), dequantized(weight * factor[:, None], fmt, dtype))


def test_scales_that_the_dtype_does_not_hold_are_an_error() -> None:
    form = stored_form(torch.full((2, 32), 1e-3), parse_format("int8"), torch.float16)
    with pytest.raises(FormatError, match="layer: it absorbs"):
        with_rows(form, torch.tensor([1.0, 2.0**-9]), "layer")


def test_powers_of_two_are_the_nearest_in_the_logarithm() -> None:
    scale = torch.logspace(-5, 5, 999)
    found = powers_of_two(scale)
    assert torch.equal(found, 2.0 ** scale.double().log2().round().float())
    assert torch.equal(powers_of_two(found), found)
