"""The sweep equals a brute-force loop, whatever is cached; and measures nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.formats.grammar import Format
from engine.measure.calibration import approximate
from engine.measure.calibration.approximate import compacted
from engine.model.network import Compact
from engine.workspace import Loaded
from tests import brute_force, tiny
from tests.drive import ended, facts, settings, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(arch: str) -> Path:
        if arch not in made:
            made[arch] = tiny.build(arch, tmp_path_factory.mktemp("sweep") / arch)
        return made[arch]

    return of


Swept = tuple[list[p.AnyEvent], dict[str, p.Sensitivity], p.JobEnded]


@pytest.fixture(scope="module")
def swept(folder: Callable[[str], Path], prose: Path) -> Callable[[str], Swept]:
    """The sweep of a checkpoint by an engine that knew nothing, run once for all that read it."""
    made: dict[str, Swept] = {}

    def of(arch: str) -> Swept:
        if arch not in made:
            made[arch] = run_sweep(folder(arch), settings(prose, fresh=True))
        return made[arch]

    return of


def run_sweep(source: Path, chosen: p.Settings, direction: p.Direction = "degrade") -> Swept:
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), chosen))
        client.send(p.Sweep(direction=direction))
        events = until(client, ended("sweep"))
    finally:
        client.close()
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "done", last.message
    rows = {f.layer: f for f in facts(events, p.Sensitivity) if isinstance(f, p.Sensitivity)}
    return events, rows, last


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "mistral", "falcon", "gemma4"])
def test_sweep_equals_the_brute_force_loop(
    arch: str, folder: Callable[[str], Path], swept: Callable[[str], Swept], prose: Path
) -> None:
    source = folder(arch)
    events, rows, _ = swept(arch)
    model = brute_force.load(source)
    ids = brute_force.windows(source, prose.read_text(), 512, 32)
    (measured,) = facts(events, p.Baseline)
    assert isinstance(measured, p.Baseline)
    assert measured.nll == pytest.approx(brute_force.baseline(model, ids, 16), abs=1e-6)

    compared = 0
    before = list(brute_force.log_probabilities(model, ids, 16))
    for name, module in brute_force.weights(model).items():
        if name not in rows:
            continue
        changed = brute_force.quantised(brute_force.oriented(module), 4, 32, torch.float16)
        expected = brute_force.effect(model, module, changed, ids, 16, before)
        ours = rows[name]
        assert brute_force.close(ours.kl, expected.kl), (name, ours.kl, expected.kl)
        assert brute_force.close(ours.dnll, expected.dnll), (name, ours.dnll, expected.dnll)
        compared += 1
    assert compared == len(rows)


def test_control_measures_exactly_nothing(swept: Callable[[str], Swept]) -> None:
    events, _, _ = swept("llama")
    (control,) = facts(events, p.Control)
    assert isinstance(control, p.Control)
    assert (control.max_abs_dnll, control.max_abs_kl) == (0.0, 0.0)
    assert 0.0 <= control.floor_dnll < 1e-4
    assert 0.0 <= control.floor_kl < 1e-6


def test_what_is_cached_changes_no_figure(
    folder: Callable[[str], Path], swept: Callable[[str], Swept], prose: Path
) -> None:
    _, plenty, _ = swept("llama")
    _, nothing, _ = run_sweep(folder("llama"), settings(prose, fresh=True, memory_budget=1))
    assert plenty == nothing


def test_restoring_is_the_same_with_all_other_layers_compact(
    folder: Callable[[str], Path], prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = run_sweep(folder("llama"), settings(prose, fresh=True), "restore")
    held: list[str] = []

    def watched(loaded: Loaded, name: str, format: Format) -> Compact:
        held.append(name)
        return compacted(loaded, name, format)

    monkeypatch.setattr(approximate, "compacted", watched)
    weights = sum(file.stat().st_size for file in folder("llama").glob("*.safetensors"))
    little = settings(prose, fresh=True, memory_budget=weights * 8 // 7)
    _, compact, _ = run_sweep(folder("llama"), little, "restore")
    assert len(whole) > 6
    assert whole == compact
    assert set(whole) <= set(held)


def test_a_second_sweep_takes_everything_from_the_store(
    folder: Callable[[str], Path], prose: Path
) -> None:
    _, first, ended_first = run_sweep(folder("llama"), settings(prose))
    _, second, ended_second = run_sweep(folder("llama"), settings(prose))
    assert ended_first.resumed == 0
    assert ended_second.measured == 0
    assert ended_second.resumed == ended_first.measured
    assert first == second


def test_a_sweep_of_one_format_takes_estimates_that_were_made_together_with_others(
    folder: Callable[[str], Path], prose: Path
) -> None:
    both = settings(prose, seq_len=32, estimate_formats=("int4-g32", "int8"))
    client = in_process(str(folder("llama")))
    try:
        client.send(p.Open(str(folder("llama")), both))
        client.send(p.Sweep(("int4-g32",), exact="none"))
        first = until(client, ended("sweep"))
        made = {f.layer: f for f in facts(first, p.Estimate) if f.format == "int8"}
        client.send(p.Sweep(("int8",), exact="none", only=True))
        again = until(client, ended("sweep"))
        client.send(p.Sweep(("int2-g32",), exact="none", only=True))
        other = until(client, ended("sweep"))
    finally:
        client.close()
    assert again[-1].measured == 0, again[-1]
    assert {f.layer: f for f in facts(again, p.Estimate)} == made
    assert {f.format for f in facts(other, p.Estimate)} == {"int2-g32"}
    assert other[-1].measured


def test_another_text_window_or_format_reuses_nothing(
    folder: Callable[[str], Path], prose: Path, tmp_path: Path
) -> None:
    source = folder("llama")
    run_sweep(source, settings(prose, tokens=256))
    other = tmp_path / "other.txt"
    other.write_text(prose.read_text()[::-1])
    for changed in (
        settings(other, tokens=256),
        settings(prose, tokens=256, seq_len=64),
        settings(prose, tokens=256, dtype="bf16"),
        settings(prose, tokens=256, stride=8),
    ):
        _, _, last = run_sweep(source, changed)
        assert last.resumed == 0
    _, _, last = run_sweep(source, settings(prose, tokens=256, sweep_formats=("int5-g32",)))
    assert last.resumed == 2  # baseline and control do not depend on the format


def test_a_changed_checkpoint_reuses_nothing(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "model")
    run_sweep(source, settings(prose, tokens=256))
    from safetensors.torch import load_file, save_file

    state = load_file(source / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    _, _, last = run_sweep(source, settings(prose, tokens=256))
    assert last.resumed == 0


def test_additivity_is_the_uniform_recipe_over_the_sum(swept: Callable[[str], Swept]) -> None:
    events, rows, _ = swept("llama")
    (found,) = facts(events, p.Additivity)
    assert isinstance(found, p.Additivity)
    body = [row for name, row in rows.items() if ".layers." in name]
    assert found.layers == len(body)
    assert found.sum_kl == pytest.approx(sum(row.kl for row in body))
    (together,) = facts(events, p.RecipeScore)
    assert isinstance(together, p.RecipeScore)
    assert found.kl == pytest.approx(together.kl / found.sum_kl)


def test_standard_error_is_that_of_the_mean_over_windows(
    folder: Callable[[str], Path], swept: Callable[[str], Swept], prose: Path
) -> None:
    """One window alone at a time, by hand, against the sweep's own standard error."""
    source = folder("llama")
    _, rows, _ = swept("llama")
    model = brute_force.load(source)
    ids = brute_force.windows(source, prose.read_text(), 512, 32)
    name = "model.layers.1.mlp.down_proj"
    module = brute_force.weights(model)[name]
    changed = brute_force.quantised(brute_force.oriented(module), 4, 32, torch.float16)
    each = torch.tensor(
        [brute_force.effect(model, module, changed, row[None], 1).kl for row in ids],
        dtype=torch.float64,
    )
    expected = float(each.std(unbiased=True)) / len(each) ** 0.5
    assert rows[name].kl_se == pytest.approx(expected, rel=1e-3)


def test_shared_keys_and_values_fall_back_and_say_so(swept: Callable[[str], Swept]) -> None:
    events, _, _ = swept("gemma4")
    ready = [event for event in events if isinstance(event, p.ModelReady)]
    assert not ready[0].resumable
    assert ready[0].why_not_resumable
    assert any(
        isinstance(event, p.Notice) and event.message == ready[0].why_not_resumable
        for event in events
    )


def test_a_format_that_is_not_built_yet_is_refused_at_once(
    folder: Callable[[str], Path], prose: Path
) -> None:
    client = in_process(str(folder("llama")))
    try:
        client.send(p.Open(str(folder("llama")), settings(prose)))
        client.send(p.Sweep(formats=("int8+hadamard+outlier6",)))
        events = until(client, lambda event: isinstance(event, p.Refused))
    finally:
        client.close()
    refused = events[-1]
    assert isinstance(refused, p.Refused)
    assert "not yet" in refused.message
    assert refused.exit_code == 2
    assert not any(isinstance(event, p.ModelReady) for event in events)
