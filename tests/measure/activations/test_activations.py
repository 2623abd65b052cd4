"""Activations: every figure against float64 NumPy on tensors that plain transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from engine import protocol as p
from engine.diagnosis.findings import findings
from engine.measure.activations.gather import MASSIVE, RULES, activations, of_tensor
from engine.measure.activations.sums import ActivationSums
from engine.measure.calibration.calibration import need_calibration
from engine.measure.counts import JobCounts
from engine.session import Session, apply
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load
from tests.drive import settings as chosen
from tests.planning.test_planning import drained


def figures(x: np.ndarray[Any, Any], seq_len: int) -> dict[str, float]:
    """Formulas of the figures, in float64."""
    x = x.astype(np.float64)
    size, norms = np.abs(x), np.sqrt((x**2).sum(1))
    tops = size.max(0)
    return {
        "max": size.max(), "mean": size.mean(), "std": x.std(),
        "channel_median": np.sort(tops)[(len(tops) - 1) // 2],
        "by_mean": (tops > RULES * tops.mean()).sum(),
        "by_median": (tops > RULES * np.sort(tops)[(len(tops) - 1) // 2]).sum(),
        "largest_norm": norms.max(), "position": norms.argmax() % seq_len,
    }  # fmt: skip


def agree(found: p.Activation, x: np.ndarray[Any, Any], seq_len: int) -> None:
    expected = figures(x, seq_len)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5, abs=1e-12), name
    size = np.abs(x)
    exact = np.quantile(size, 0.99, method="inverted_cdf")
    assert found.p99 == pytest.approx(exact, rel=0.017)
    assert found.median_norm == pytest.approx(
        np.quantile(np.sqrt((x.astype(np.float64) ** 2).sum(1)), 0.5, method="inverted_cdf"),
        rel=0.017,
    )


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 64),
    st.sampled_from(["normal", "channel", "token", "heavy", "tiny", "sink"]),
    st.integers(1, 4),
)
def test_a_tensor_s_figures_are_those_of_numpy_however_it_is_split(
    seed: int, channels: int, kind: str, parts: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(96, channels)).astype(np.float32)
    if kind == "channel":
        x[:, channels // 2] *= 500
    elif kind == "token":
        x[17] *= 1000
    elif kind == "heavy":
        x = (x * np.exp(2 * random.normal(size=x.shape))).astype(np.float32)
    elif kind == "tiny":
        x *= np.float32(1e-9)
    if kind == "sink":  # the first token of every window
        x = np.tile(x, (43, 1))
        x[::24] *= 1000
    total = ActivationSums.empty(channels)
    for part in np.split(x, [len(x) // 96 * 24 * at for at in range(1, parts)]):
        sums = ActivationSums.empty(channels)
        sums.add(torch.tensor(part), 24)
        total.merge(sums)
    found = of_tensor(total)
    agree(found, x, 24)
    assert found.nonfinite == 0
    if kind == "token" and channels > 8:
        norms = np.linalg.norm(x.astype(np.float64), axis=1)
        assert found.massive == (norms > MASSIVE * np.median(norms)).sum()
    if kind == "channel" and channels > 8:
        assert found.outlier_channels[0] == channels // 2


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    x = torch.ones(8, 4)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    sums = ActivationSums.empty(4)
    sums.add(x, 8)
    found = of_tensor(sums)
    assert (found.nonfinite, found.max) == (2, 1.0)
    assert of_tensor(ActivationSums.empty(4)).massive == 0


def measured(
    arch: str, tmp_path: Path, prose: Path
) -> tuple[Loaded, dict[str, p.LayerActivations]]:
    source = tiny.build(arch, tmp_path / arch)
    given = chosen(prose, calib_tokens=256, tokens=128, calib=str(prose))
    loaded = load(source, FactStore(tmp_path / "facts.sqlite"), given)
    events, _ = drained(activations(loaded, JobCounts()))
    facts = [f for e in events if isinstance(e, p.Learned) for f in e.facts]
    return loaded, {f.layer: f for f in facts if isinstance(f, p.LayerActivations)}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "gemma3", "qwen3_moe"])
def test_layers_are_seen_as_plain_transformers_runs_them(
    arch: str, tmp_path: Path, prose: Path
) -> None:
    loaded, found = measured(arch, tmp_path, prose)
    _, calibration = drained(need_calibration(loaded))
    ids = calibration.windows.ids
    model = AutoModelForCausalLM.from_pretrained(loaded.opened.path, dtype=torch.float32).eval()
    seen: dict[str, list[tuple[Any, Any]]] = {}

    def hook(name: str) -> Any:
        def take(_module: Any, args: Any, output: Any) -> None:
            seen.setdefault(name, []).append(
                (args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1]))
            )

        return take

    plain = [n for n, x in loaded.network.layers.items() if x.role in ("linear", "conv1d", "head")]
    for name in plain:
        model.get_submodule(loaded.network.layers[name].module).register_forward_hook(hook(name))
    returned_by: dict[str, Any] = {}

    def returns(name: str) -> Any:
        def take(_module: Any, _args: Any, output: Any) -> None:
            returned_by[name] = output[0] if isinstance(output, tuple) else output

        return take

    ends = {fact.module: fact for fact in found.values() if fact.module}
    # OPT has no module around its MLP.
    assert len(ends) == (1 if arch == "opt" else 2) * len(loaded.network.blocks)
    for name in ends:
        model.get_submodule(name).register_forward_hook(returns(name))
    with torch.no_grad():
        model(input_ids=ids)
    for name, fact in ends.items():
        output, values = fact.module_output, returned_by[name]
        assert output is not None
        agree(output, values.reshape(-1, values.shape[-1]).numpy(), ids.shape[1])
    for name in plain:
        (given, returned) = seen[name][0]
        agree(found[name].input, given.numpy(), ids.shape[1])
        if name != "lm_head" and loaded.network.layers[name].role != "head":
            output = found[name].output
            assert output is not None
            agree(output, returned.numpy(), ids.shape[1])
    assert set(found) == {n for n, x in loaded.network.layers.items() if x.role != "embedding"}
    for name, fact in found.items():
        if loaded.network.layers[name].role == "experts":
            chosen_experts = model.config.num_experts_per_tok
            assert sum(fact.expert_tokens) == ids.numel() * chosen_experts
            assert fact.output is None


def test_a_second_run_finds_them_in_the_store(tmp_path: Path, prose: Path) -> None:
    loaded, found = measured("llama", tmp_path, prose)
    counts = JobCounts()
    for event in drained(activations(loaded, counts))[0]:
        if isinstance(event, p.Learned):
            loaded.opened.workspace.facts.put(event.keys, event.facts)
    assert (counts.measured, counts.known) == (len(found), 0)
    counts = JobCounts()
    events, _ = drained(activations(loaded, counts))
    assert (counts.measured, counts.known) == (0, len(found))
    assert {f.layer: f for e in events if isinstance(e, p.Learned) for f in e.facts} == found


@pytest.fixture(scope="module")
def planted() -> dict[str, p.LayerActivations]:
    """A channel that recurs, one that does not, a massive token, an expert without tokens."""
    random = torch.Generator().manual_seed(0)
    facts: dict[str, p.LayerActivations] = {}
    for block in range(5):
        x = torch.randn(512, 64, generator=random)
        x[:, 9] *= 60
        if block == 2:
            x[:, 40] *= 80
        if block == 3:
            x[0] *= 4000
        sums = ActivationSums.empty(64)
        sums.add(x, 128)
        name = f"model.layers.{block}.self_attn.q_proj"
        facts[name] = p.LayerActivations(
            layer=name, tokens=512, input=of_tensor(sums), shared_with=name,
            expert_tokens=[3, 0, 5] if block == 4 else [],
        )  # fmt: skip
    return facts


def test_what_is_planted_in_activations_is_found_with_its_cause(
    planted: dict[str, p.LayerActivations],
) -> None:
    from tests.diagnosis.test_findings import F, clean, without_channels

    session = without_channels(clean())
    apply(session, p.Learned(("",) * 5, tuple(planted.values())))
    found = {each.id: each for each in findings(session, F) if each.severity != "info"}
    assert found["massive-channel"].channels == (9,)  # of inputs of one width
    assert "5 of 5 blocks" in found["massive-channel"].sentence
    assert found["input-channel"].channels == (40,)
    assert ".2." in found["input-channel"].layer
    assert ".3." in found["massive-token"].layer
    assert "position 0" in found["massive-token"].sentence
    assert "1 of 3 experts got no token" in found["unseen-expert"].sentence
    causes = {"massive-channel", "input-channel", "massive-token", "unseen-expert"}
    assert set(found) == causes | {"thin-experts"}  # the other two saw few tokens, too


def test_activations_of_normal_tensors_are_no_finding() -> None:
    session = Session()
    from tests.qtui import replay as r

    session = r.folded(*r.opening())
    facts = []
    for seed, name in enumerate(session.layers.names[1:]):
        x = torch.randn(512, 256, generator=torch.Generator().manual_seed(seed))
        sums = ActivationSums.empty(256)
        sums.add(x, 128)
        facts.append(
            p.LayerActivations(layer=name, tokens=512, input=of_tensor(sums), shared_with=name)
        )
    apply(session, p.Learned(("",) * len(facts), tuple(facts)))
    assert findings(session, "int4-g128") == []


def test_channels_of_other_widths_and_the_head_are_not_counted_together() -> None:
    from tests.diagnosis.test_findings import F, clean, without_channels

    session = without_channels(clean())
    facts = []
    for name, width in (
        *((f"model.layers.{block}.self_attn.q_proj", 64) for block in (0, 1)),
        *((f"model.layers.{block}.mlp.down_proj", 128) for block in (2, 3)),
        ("lm_head", 64),
    ):
        x = torch.randn(256, width, generator=torch.Generator().manual_seed(1))
        x[:, 7] *= 60
        sums = ActivationSums.empty(width)
        sums.add(x, 128)
        facts.append(
            p.LayerActivations(layer=name, tokens=256, input=of_tensor(sums), shared_with=name)
        )
    apply(session, p.Learned(("",) * 5, tuple(facts)))
    told = {each.id for each in findings(session, F) if each.severity != "info"}
    assert told == {"input-channel"}


def test_channels_of_one_layer_are_said_together_the_largest_first() -> None:
    from tests.diagnosis.test_findings import F, clean, without_channels

    session, name = without_channels(clean()), "model.layers.2.mlp.down_proj"
    x = torch.randn(512, 128, generator=torch.Generator().manual_seed(1))
    x[:, 7] *= 60
    x[:, 90] *= 200
    sums = ActivationSums.empty(128)
    sums.add(x, 128)
    fact = p.LayerActivations(layer=name, tokens=512, input=of_tensor(sums), shared_with=name)
    apply(session, p.Learned(("",), (fact,)))
    (found,) = [each for each in findings(session, F) if each.id == "input-channel"]
    assert found.channels == (90, 7)
    largest = x.abs().amax(0)
    assert found.evidence["ratio"] == pytest.approx(
        float(largest.max() / largest.median()), rel=0.02
    )
    assert found.sentence.startswith("input channels 90, 7 reach up to ")
