"""States that do not fit the device: pinned in host memory, on disk, within a small budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gpu.models import counts, ended, opened, tiny_checkpoint
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from engine.measure.evaluation.reference import Reference
    from engine.model.memory_tiers import MemoryTier
    from engine.workspace import Loaded

FORMAT = "int4-g32"
ROUNDS = 50


def run(options: Options, figures: Recorder) -> None:
    """Figures from states in each tier, against states that are all on the device."""
    import torch

    from engine.model.memory_tiers import DiskTier, HostTier

    loaded = opened(options, tiny_checkpoint(options, "llama"), options.device)
    device = loaded.network.device
    roomy = _reference(loaded, 1 << 30, [])
    expected = _figures(loaded, roomy)
    tiers: dict[str, MemoryTier] = {"disk": DiskTier(device, 1 << 30, options.folder)}
    if device.type == "cuda":
        tiers["pinned memory"] = HostTier(device, 1 << 30)
    exact = 0.0 if device.type == "cpu" else 1e-5
    for name, tier in tiers.items():
        reference = _reference(loaded, _one_state(roomy), [tier])
        figures.worst(f"KL with states in {name}", _figures(loaded, reference), expected, exact)
        figures.most(f"no bytes in {name}", float(tier.room.peak == 0), 0)
        figures.tell(f"most bytes in {name}", tier.room.peak)
        state = torch.randn(64, 512, device=device)
        figures.same(
            f"a state read back from {name}", _there_and_back(tier, state), float(state.sum())
        )
    from engine.measure.evaluation.reference import reference_of

    weights = loaded.network.weights_in_memory
    budgets = {"under a small --memory-budget": weights * 8 // 7 + 2 * _one_state(roomy)}
    budgets["with streamed blocks"] = weights // 2
    for name, budget in budgets.items():
        source = tiny_checkpoint(options, "llama")
        tight = opened(options, source, options.device, memory_budget=budget)
        found = _figures(tight, reference_of(tight))
        figures.worst(f"KL {name}", found, expected, exact)
    figures.most("blocks are not streamed", float(not tight.network.streamed), 0)
    _overwritten(options, figures, tiers)


def _one_state(reference: Reference) -> int:
    return 3 * reference.sizes.state


def _reference(loaded: Loaded, budget: int, beyond: list[MemoryTier]) -> Reference:
    """A reference whose states go to these tiers, however slow they are here."""
    from engine.measure.evaluation.reference import Reference
    from engine.model.memory_tiers import TieredMemory

    memory = TieredMemory(loaded.network.device, budget, beyond)
    if beyond:
        memory.beyond = beyond
    return Reference(loaded.network, loaded.windows, loaded.settings.batch_tokens, budget, memory)


def _figures(loaded: Loaded, reference: Reference) -> dict[str, float]:
    """The KL of every fourth layer on all micro-batches, from cached states."""
    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.measure.evaluation.evaluate import run_reference

    found = {}
    for batch in range(len(reference.batches)):
        ended(run_reference(reference, batch, counts()))
    for name, layer in list(loaded.network.layers.items())[::4]:
        weight = approximation(loaded, name, parse_format(FORMAT))
        tallies = [
            reference.measure(batch, layer.start, {name: weight})
            for batch in range(len(reference.batches))
        ]
        found[name] = sum(float(tally.kl.sum()) for tally in tallies)
    return found


def _there_and_back(tier: MemoryTier, state):  # type: ignore[no-untyped-def]
    """The sum of a state that was stored while the device was busy, then read."""
    stored = tier.put(state)
    assert stored is not None, f"{tier.name} had no room"
    return float(stored.read().sum())


def _overwritten(options: Options, figures: Recorder, tiers: dict[str, MemoryTier]) -> None:
    """States whose memory is used again while a copy may still run: none must change."""
    import torch

    for name, tier in tiers.items():
        wrong = 0
        kept = []
        for turn in range(ROUNDS):
            state = torch.full((256, 1024), float(turn), device=options.device)
            kept.append(tier.put(state))
            del state  # its memory is the next one's
        for turn, stored in enumerate(kept):
            wrong += stored is None or bool((stored.read() != turn).any())
        figures.most(f"states that changed in {name}, of {ROUNDS}", wrong, 0)
