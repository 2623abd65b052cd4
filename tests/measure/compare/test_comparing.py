"""Finished checkpoints against plain loops of transformers, and what is told of their layers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import engine
from engine import protocol as p
from engine.client import in_process
from engine.diagnosis.of_artefacts import artefact_findings
from engine.export.gptq import words
from engine.formats.grammar import parse_format
from engine.measure.compare.job import COMPARE
from engine.quant.quantize import dequantized, stored_form
from engine.session import Compared, Session, apply
from tests import brute_force, tiny
from tests.drive import ended, settings, until

BATCH = 4


def finished(source: Path, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of a checkpoint with its linear weights changed, by name."""
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {
        name: change(name, tensor).to(tensor.dtype) if _linear(name, tensor) else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return folder


def _linear(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and "embed" not in name and "lm_head" not in name


def rounded(format: str) -> Callable[[str, Tensor], Tensor]:
    return lambda _name, tensor: dequantized(tensor.float(), parse_format(format), torch.float16)


def compared(source: Path, text: Path, *artefacts: Path, **given: object) -> Session:
    """What a session knows after a comparison that ended well."""
    session = Session()
    client = in_process(str(source))
    try:
        scored = bool(given.get("score", True))
        client.send(p.Open(str(source), settings(text, batch_tokens=32 * BATCH), model=scored))
        client.send(p.Compare(tuple(map(str, artefacts)), **given))  # type: ignore[arg-type]
        stop = ended("compare")
        for event in until(client, lambda e: stop(e) or isinstance(e, p.Refused)):
            apply(session, event)
    finally:
        client.close()
    job = next(job for job in session.jobs.values() if job.kind == "compare")
    assert job.status == "done", job.message
    return session


def only(session: Session) -> Compared:
    (found,) = session.compared.values()
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("compare") / "llama")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3_moe"])
def test_a_score_and_what_a_layer_wins_are_a_plain_loop_s(
    arch: str, llama: Path, tmp_path: Path, prose: Path
) -> None:
    source = llama if arch == "llama" else tiny.build(arch, tmp_path / arch)
    folder = finished(source, tmp_path / "int3", rounded("int3-g32"))
    session = compared(source, prose, folder, restore=2)
    found = only(session)
    assert found.score is not None
    original, changed = brute_force.load(source), brute_force.load(folder)
    rows = brute_force.windows(source, prose.read_text(), 512, 32)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows = rows[order]  # means do not depend on the order, but for rounding
    dnll = kl = agree = 0.0
    before = brute_force.log_probabilities(original, rows, BATCH)
    after = brute_force.log_probabilities(changed, rows, BATCH)
    for ids, old, new in zip(rows.split(BATCH), before, after, strict=True):
        targets = ids[:, 1:, None]
        dnll += float((old.gather(-1, targets) - new.gather(-1, targets)).sum())
        kl += float((old.exp() * (old - new)).sum())
        agree += float((old.argmax(-1) == new.argmax(-1)).sum())
    count = rows.shape[0] * (rows.shape[1] - 1)
    assert brute_force.close(found.score.kl, kl / count)
    assert brute_force.close(found.score.dnll, dnll / count)
    assert found.score.top1 == pytest.approx(agree / count, abs=1e-9)
    assert session.baseline is not None
    assert found.score.nll == pytest.approx(session.baseline.nll + found.score.dnll)
    assert found.score.ppl_low < found.score.ppl < found.score.ppl_high

    assert len(found.restored) == 2
    modules = dict(changed.named_modules())
    theirs = dict(original.named_modules())
    for layer, win in found.restored.items():
        if layer not in modules:  # fused experts are a parameter
            continue
        with torch.no_grad():
            kept = modules[layer].weight.data
            modules[layer].weight.data = theirs[layer].weight.data
            left = sum(
                float((old.exp() * (old - new)).sum())
                for old, new in zip(
                    brute_force.log_probabilities(original, rows, BATCH),
                    brute_force.log_probabilities(changed, rows, BATCH),
                    strict=True,
                )
            )
            modules[layer].weight.data = kept
        assert brute_force.close(win.kl, (kl - left) / count)


def test_layers_are_told_apart_by_how_they_were_rounded(
    llama: Path, tmp_path: Path, prose: Path
) -> None:
    other = torch.Generator().manual_seed(9)

    def change(name: str, tensor: Tensor) -> Tensor:
        if "layers.1.mlp.up_proj" in name:  # of another revision
            tensor = 0.02 * torch.randn(tensor.shape, generator=other)
        if "layers.2.mlp.down_proj" in name:
            return tensor  # left as it was
        return rounded("int4-g32")(name, tensor)

    folder = finished(llama, tmp_path / "mixed", change)
    session = compared(llama, prose, folder, score=False)
    assert session.model is None, "files alone"
    found = only(session)
    kinds = {name.split("layers.")[-1]: each.rounding for name, each in found.layers.items()}
    assert kinds.pop("1.mlp.up_proj") == "other"
    assert kinds.pop("2.mlp.down_proj") == kinds.pop("lm_head") == "same"
    assert kinds.pop("model.embed_tokens") == "same"
    assert set(kinds.values()) == {"nearest"}
    layer = "model.layers.0.self_attn.q_proj"
    (file,) = llama.glob("*.safetensors")
    weight = load_file(file)[f"{layer}.weight"].double()
    (file,) = folder.glob("*.safetensors")
    gap = (load_file(file)[f"{layer}.weight"].double() - weight).norm()
    assert found.layers[layer].error.frobenius == pytest.approx(float(gap), rel=1e-9)
    assert found.layers[layer].error.relative == pytest.approx(float(gap / weight.norm()), rel=1e-9)
    assert found.opened.unmatched == ()


def test_scales_that_a_norm_took_over_are_no_error(
    llama: Path, tmp_path: Path, prose: Path
) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(llama, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    chance, errors = torch.Generator().manual_seed(5), {}
    for block in range(3):
        scale = torch.exp2(torch.randint(-2, 3, (64,), generator=chance).float())  # exact
        tensors[f"model.layers.{block}.input_layernorm.weight"] /= scale
        for kind in "qkv":
            name = f"model.layers.{block}.self_attn.{kind}_proj.weight"
            stored = rounded("int3-g32")("", tensors[name] * scale)
            errors[name] = (stored / scale - tensors[name]).norm() / tensors[name].norm()
            tensors[name] = stored
    save_file(tensors, file, {"format": "pt"})
    found = only(compared(llama, prose, folder))
    layer = found.layers["model.layers.1.self_attn.k_proj"]
    assert layer.folded == 16
    assert layer.rounding == "nearest"
    expected = errors["model.layers.1.self_attn.k_proj.weight"]
    assert layer.error.relative == pytest.approx(float(expected), rel=1e-6)
    assert found.layers["model.layers.1.mlp.up_proj"].rounding == "same"


def test_the_same_checkpoint_differs_by_exactly_nothing_and_is_not_measured_twice(
    llama: Path, tmp_path: Path, prose: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "a copy"}))
    session = compared(llama, prose, folder, restore=3)
    found = only(session)
    assert found.score is not None
    assert found.score.kl == found.score.dnll == 0.0
    assert found.score.top1 == 1.0
    assert {each.rounding for each in found.layers.values()} == {"same"}
    assert found.restored == {}, "nothing to give back"
    again = compared(llama, prose, folder, restore=3)
    (job,) = (job for job in again.jobs.values() if job.kind == "compare")
    assert job.measured == 0
    assert only(again).score == found.score
    facts = only(again).layers
    assert {name: repr(fact) for name, fact in facts.items()} == {  # nan is not nan
        name: repr(fact) for name, fact in found.layers.items()
    }


def test_what_is_another_model_is_refused(llama: Path, tmp_path: Path, prose: Path) -> None:
    other = tiny.build("gpt2", tmp_path / "gpt2")
    session = Session()
    client = in_process(str(llama))
    try:
        client.send(p.Open(str(llama), settings(prose)))
        client.send(p.Compare((str(other),)))
        for event in until(client, ended("compare")):
            apply(session, event)
    finally:
        client.close()
    job = next(job for job in session.jobs.values() if job.kind == "compare")
    assert job.status == "failed"
    assert job.exit_code == 3
    assert "shares no layer of a block" in job.message
    assert math.isnan(job.seconds_left) or job.seconds_left == 0


def test_the_original_decides_how_a_file_is_read(llama: Path, tmp_path: Path, prose: Path) -> None:
    """Zero points of version 1 in a folder that declares version 2, as some writers leave it."""
    right = exported(llama, tmp_path / "gptq", "int4-g32", "gptq")
    wrong = tmp_path / "declared otherwise"
    shutil.copytree(right, wrong)
    for file in (wrong / "config.json", wrong / "quantize_config.json"):
        if file.exists():
            said = '"checkpoint_format": "gptq'
            text = file.read_text().replace(f'{said}"', f'{said}_v2"')
            assert "gptq_v2" in text
            file.write_text(text)
    session = compared(llama, prose, right, wrong)
    good, bad = session.compared.values()
    assert bad.score is not None
    assert good.score is not None
    assert bad.score.kl == good.score.kl > 0
    changed = {name: fact for name, fact in bad.layers.items() if fact.rounding != "same"}
    assert len(changed) == 21
    assert {fact.rounding for fact in changed.values()} == {"nearest"}
    assert {fact.declared for fact in changed.values()} == {"GPTQ v2"}
    assert {fact.read_as for fact in good.layers.values()} == {""}
    assert {fact.holds for fact in changed.values()} == {"int4-g32"}
    (found,) = artefact_findings(bad)
    assert found.id == "declared-otherwise"
    assert artefact_findings(good) == []


def test_experts_that_are_stored_one_by_one_are_settled_one_by_one(
    tmp_path: Path, prose: Path
) -> None:
    source, folder = tiny.build("qwen3_moe", tmp_path / "moe"), tmp_path / "gptq"
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors, fmt = load_file(file), parse_format("int4-g32")
    for name in [each for each in tensors if ".experts." in each]:
        form = stored_form(tensors.pop(name).float(), fmt, torch.float16)
        tensors |= words.tensors(name.removesuffix(".weight"), fmt, form)
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False,
        "checkpoint_format": "gptq_v2",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found = only(compared(source, prose, folder, score=False))
    layer = found.layers["model.layers.1.mlp.experts.down_proj"]
    assert (layer.declared, layer.rounding) == ("GPTQ v2", "nearest")
    assert {each.id for each in artefact_findings(found)} == {"declared-otherwise"}


def test_a_padded_vocabulary_is_no_other_shape(llama: Path, tmp_path: Path, prose: Path) -> None:
    """The tokens of both are compared, and the padding stays where a head is given back."""

    def change(name: str, tensor: Tensor) -> Tensor:
        rows = rounded("int4-g32")(name, tensor) if "lm_head" in name else tensor
        return torch.cat([rows, torch.ones(24, 64)])

    folder = tmp_path / "padded"
    shutil.copytree(llama, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = change(name, tensors[name].float()).to(tensors[name].dtype)
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": tiny.VOCABULARY + 24}))
    found = only(compared(llama, prose, folder, restore=1))
    assert found.opened.unmatched == ()
    assert artefact_findings(found)[0].id == "worth-keeping"
    assert found.layers["model.embed_tokens"].rounding == "same"
    assert found.layers["lm_head"].rounding == "nearest"
    assert found.score is not None
    assert found.restored["lm_head"].kl == pytest.approx(found.score.kl)


@pytest.mark.parametrize("every", [True, False])
def test_weights_that_are_not_finite_are_said_to_be_so(
    every: bool, llama: Path, tmp_path: Path, prose: Path
) -> None:
    def change(name: str, tensor: Tensor) -> Tensor:
        found = rounded("int4-g32")(name, tensor).clone()
        if every or "layers.1.mlp.up_proj" in name:
            found[3, 4] = math.inf
        return found

    folder = finished(llama, tmp_path / "infinite", change)
    (found,) = artefact_findings(only(compared(llama, prose, folder, score=False)))
    assert found.id == "not-finite"
    assert found.evidence == {"layers": 21 if every else 1}


def test_one_folder_is_compared_once_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    spelled = (str(tmp_path / "a"), f"{tmp_path}/a/", f"{tmp_path}/../{tmp_path.name}/./a")
    accept = COMPARE.accept
    assert accept is not None
    assert accept(None, p.Compare(("demo",))).artefacts == ("demo",)  # type: ignore[arg-type]
    assert accept(None, p.Compare(spelled)).artefacts == (str(tmp_path / "a"),)  # type: ignore[arg-type]


def exported(source: Path, folder: Path, format: str, to: str) -> Path:
    """A folder written by an export."""
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(), model=False))
        client.send(p.Export(out=str(folder), to=to, format=format))
        (*_, end) = until(client, ended("export"))
        assert isinstance(end, p.JobEnded)
        assert end.status == "done", end.message
    finally:
        client.close()
    return folder


def test_scores_stay_while_the_windows_are_the_same(
    llama: Path, tmp_path: Path, prose: Path
) -> None:
    folder = finished(llama, tmp_path / "int4", rounded("int4-g32"))
    session = compared(llama, prose, folder)
    score = only(session).score
    assert score is not None
    assert session.model is not None
    apply(session, session.model)  # opened again
    assert only(session).score == score
    other = msgspec.structs.replace(session.model.protocol, seq_len=16)
    apply(session, msgspec.structs.replace(session.model, protocol=other))
    assert only(session).score is None
    assert only(session).layers, "errors of weights hold on any text"


def test_the_library_gives_the_same(llama: Path, tmp_path: Path, prose: Path) -> None:
    folder = finished(llama, tmp_path / "int4", rounded("int4-g32"))
    known = compared(llama, prose, folder, restore=1)
    model = engine.open(
        str(llama), text=str(prose), tokens=512, seq_len=32, batch_tokens=128,
        sweep_formats=("int4-g32",),
    )  # fmt: skip
    with model:
        result = model.compare(folder, restore=1)
        facts = list(result)
        assert [fact for fact in facts if isinstance(fact, p.ArtefactScore)] == [only(known).score]
        rows = result.rows()
        assert len(rows) == len(only(known).layers)
        assert {"checkpoint", "name", "format", "errors.relative", "rounding"} <= rows[0].keys()
        assert "KL·10³" in str(result)
