"""States within a budget: what lies where changes no figure, and never more is kept than asked."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import EngineError
from engine.formats.grammar import parse_format
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference
from engine.model.boundary_states import CachePlan, CacheSizes, choose
from engine.model.load import load_network
from engine.model.memory_tiers import DiskTier, KeptTensor, Room, TieredMemory
from engine.model.network import Network
from engine.quant.quantize import dequantized
from engine.texts.windows import Windows, cut
from tests import tiny

CPU = torch.device("cpu")
SEQ_LEN, COUNT = 16, 8


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    made: dict[str, Network] = {}

    def of(arch: str) -> Network:
        if arch not in made:
            folder = tmp_path_factory.mktemp("states") / arch
            size = {"n_layer": 6} if arch == "gpt2" else {"num_hidden_layers": 6}
            tiny.build(arch, folder, **({} if arch == "gemma4" else size))
            made[arch] = load_network(folder, device="cpu")
        return made[arch]

    return of


def text() -> Windows:
    return cut(tiny.ids(1, SEQ_LEN * COUNT)[0], SEQ_LEN, SEQ_LEN * COUNT)


class Elsewhere:
    """A place that takes what is said to read from, and counts what is read."""

    def __init__(self, seconds: float, limit: int = 1 << 30) -> None:
        self.name, self.room = "elsewhere", Room(limit)
        self._seconds = seconds
        self.put_there = self.read_there = 0

    def put(self, tensor: Tensor) -> KeptTensor | None:
        if not self.room.take(tensor.nbytes):
            return None
        self.put_there += 1
        place, copy = self, tensor.clone()

        class There:
            def read(self) -> Tensor:
                place.read_there += 1
                return copy.clone()

        return There()

    def seconds(self, sample: Tensor) -> float:
        return self._seconds


def figures(
    network: Network, budget: int, memory: TieredMemory | None = None
) -> tuple[Reference, list[float]]:
    """Every figure of a sweep and of a recipe, one after the other."""
    reference = Reference(network, text(), 64, budget, memory)
    found: list[float] = []
    first: dict[int, str] = {}
    for name, layer in network.layers.items():
        if layer.start in (-1, 1, len(network.blocks) - 2, len(network.blocks)):
            first.setdefault(layer.start, name)
    coarse = {
        name: dequantized(network.weight(name), parse_format("int3-g32"), torch.float16)
        for name in first.values()
    }
    run = RecipeRun(reference, coarse)
    for batch in range(len(reference.batches)):
        reference.run(batch)
        for start, name in first.items():
            tally = reference.measure(batch, start, {name: coarse[name]})
            found += [*tally.kl.tolist(), *tally.dnll.tolist()]
        found += run.tally(batch).kl.tolist()
        for start, name in first.items():
            tally = run.measure(batch, start, {name: network.weight(name)})
            found += [*tally.kl.tolist(), *tally.agree.tolist()]
    found += reference.nll_sums().tolist()
    return reference, found


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3_moe", "gemma4"])
def test_half_and_a_quarter_of_what_it_takes_is_enough_and_no_figure_differs(
    arch: str, loaded: Callable[[str], Network]
) -> None:
    network = loaded(arch)
    unbounded, expected = figures(network, 1 << 40)
    most = unbounded.memory.room.peak
    sizes = unbounded.sizes
    assert unbounded.plan == CachePlan(1, True)
    if network.resumable:
        assert most >= 2 * sizes.states(1) + sizes.logits
    for part in (2, 4):
        for beyond in ([], [Elsewhere(0.0)]):
            memory = TieredMemory(CPU, most // part, beyond)
            _, found = figures(network, most // part, memory)
            assert found == expected
            assert 0 < memory.room.peak <= most // part


def test_states_are_read_from_elsewhere_where_that_is_quicker_than_a_block(
    loaded: Callable[[str], Network],
) -> None:
    network = loaded("llama")
    unbounded, _ = figures(network, 1 << 40)
    quick, slow = Elsewhere(0.0), Elsewhere(1e9)
    budget = unbounded.memory.room.peak // 4
    memory = TieredMemory(CPU, budget, [slow, quick])
    figures(network, budget, memory)
    assert memory.beyond == [quick]
    assert quick.read_there > 0
    assert (slow.put_there, slow.read_there) == (0, 0)


def test_nothing_is_tried_out_where_everything_fits(loaded: Callable[[str], Network]) -> None:
    place = Elsewhere(0.0)
    memory = TieredMemory(CPU, 1 << 40, [place])
    reference, _ = figures(loaded("llama"), 1 << 40, memory)
    assert memory.beyond is None
    assert place.put_there == 0
    for k in range(1, reference.sizes.blocks + 1):
        assert reference.states.nearest(0, k) == k


def test_the_reference_leaves_room_for_a_recipe(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    unbounded, _ = figures(network, 1 << 40)
    sizes = unbounded.sizes
    memory = TieredMemory(CPU, sizes.states(1) + sizes.logits, [])
    figures(network, 0, memory)
    reference = Reference(
        network, text(), 64, 0, TieredMemory(CPU, sizes.states(1) + sizes.logits, [])
    )
    for batch in range(len(reference.batches)):
        reference.run(batch)
    assert reference.memory.room.left >= sizes.states(1) // 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_to_disk_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    disk = DiskTier(CPU, 1 << 20, tmp_path)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 3, n, generator=generator).to(dtype) for n in (8, 16, 8, 24)]
    states[1][0, 0, 0] = float("nan")
    stored = [disk.put(state) for state in states]
    stored[2] = None  # its place is written over
    gc.collect()
    again = disk.put(states[2] + 1)
    assert again is not None
    assert disk.room.used == sum(state.nbytes for state in states)
    for state, found in zip([*states, states[2] + 1], [*stored, again], strict=True):
        if found is not None:
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(found.read().view(bits), state.view(bits))
    assert 0 < disk.seconds(states[0]) < 60


def test_the_file_on_disk_has_no_name_and_is_as_long_as_what_was_kept_at_once(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spilled"
    folder.mkdir()
    disk = DiskTier(CPU, 1 << 20, folder)
    for _ in range(5):
        stored = [disk.put(torch.ones(1, 4, 8)) for _ in range(3)]
        assert all(each is not None for each in stored)
        assert list(folder.iterdir()) == []
        del stored
    assert disk.room.used == 0
    assert disk.room.peak <= 6 * 128
    assert os.fstat(disk._opened()).st_size <= 6 * 128


def test_a_disk_that_is_full_is_not_written_to_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, state = DiskTier(CPU, 1 << 20, tmp_path), torch.ones(1, 4, 8)
    kept = disk.put(state)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert disk.put(state) is None
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert disk.put(state) is None
    assert kept is not None
    assert torch.equal(kept.read(), state)


def test_no_more_is_kept_than_there_is_room_for_and_what_is_let_go_is_given_back() -> None:
    memory = TieredMemory(CPU, 300, [])
    whole = torch.zeros(4, 25)
    kept = [memory.put(whole[i : i + 1]) for i in range(4)]  # of 100 bytes
    assert [each is None for each in kept] == [False, False, False, True]
    assert (memory.room.used, memory.room.peak) == (300, 300)
    first = kept[0]
    assert first is not None
    # A part of a larger tensor would keep all of it alive.
    assert first.read().untyped_storage().nbytes() == 100
    del first, kept
    assert (memory.room.used, memory.room.peak) == (0, 300)


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    disk = DiskTier(CPU, 1 << 20, tmp_path)
    stored = disk.put(torch.ones(1, 4, 8))
    assert stored is not None
    os.truncate(disk._opened(), 10)
    with pytest.raises(EngineError, match=f"{tmp_path}.*read back"):
        stored.read()


SIZES = st.builds(
    CacheSizes,
    blocks=st.integers(1, 64),
    state=st.integers(1, 1000),
    logits=st.integers(1, 50_000),
    head=st.floats(0.01, 20),
)


@given(SIZES, st.integers(0, 200_000), st.none() | st.floats(0.001, 0.9))
def test_a_plan_fits_and_no_other_that_fits_costs_less(
    sizes: CacheSizes, room: int, reading: float | None
) -> None:
    plan = choose(sizes, room, reading, logits=True)

    def kept(every: int) -> list[int]:
        n = sizes.blocks
        return sorted({n} | {k for k in range(1, n) if k % every == 0})

    def cost(every: int, logits: bool) -> float:
        again = (every - 1) / 2
        if reading is not None:
            again = min(again, (1 - 1 / every) * reading)
        return again + (0.0 if logits else sizes.head)

    def takes(every: int, logits: bool) -> int:
        return len(kept(every)) * sizes.state + (sizes.logits if logits else 0)

    powers = [2**i for i in range(8) if 2**i < 2 * sizes.blocks]
    fitting = [(e, x) for e in powers for x in (True, False) if takes(e, x) <= room]
    if fitting:
        assert takes(plan.every, plan.logits) <= room
        assert cost(plan.every, plan.logits) == min(cost(*each) for each in fitting)
    else:
        assert not plan.logits
        assert plan.every >= sizes.blocks


RESIDENT = """
import json, re, sys
from pathlib import Path
import torch
from engine.texts.windows import cut
from engine.measure.evaluation.reference import Reference
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.model.load import load_network
from tests import tiny
folder = tiny.build("llama", Path(sys.argv[1]), hidden_size=128, intermediate_size=128,
                    num_hidden_layers=16, num_attention_heads=2, num_key_value_heads=2)
network = load_network(folder, device="cpu")
windows = cut(tiny.ids(1, 1 << 12)[0], 64, 1 << 12)
names = ["model.layers.1.mlp.up_proj", "model.layers.14.mlp.up_proj"]
changed = {name: network.weight(name) * 0.9 for name in names}

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def run(budget):
    reference = Reference(network, windows, 1024, budget)
    run = RecipeRun(reference, changed)
    kl, taken = [], 0
    for batch in range(len(reference.batches)):
        reference.run(batch)
        kl += run.tally(batch).kl.tolist()
        kl += run.measure(batch, 14, {names[1]: network.weight(names[1])}).kl.tolist()
        taken = max(taken, anonymous())
    return taken, reference.memory.room.peak, kl

sizes = Reference(network, windows, 1024, 1).sizes
most = 2 * sizes.states(1) + sizes.logits + (1 << 20)
found, figures = [], None
for budget in (1, most // 3, 1 << 40):
    resident, peak, kl = run(budget)
    figures = figures or kl
    assert kl == figures, budget
    found.append([min(budget, most), resident, peak])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_resident_memory_stays_within_what_was_asked_for(tmp_path: Path) -> None:
    """By what the process has of its own, the least budget first: it grows by what is kept."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESIDENT, str(tmp_path / "model")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 19)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (_, without, _), *rest = json.loads(done.stdout.splitlines()[-1])
    most = rest[-1][0]
    assert most > 50 << 20
    for budget, resident, peak in rest:
        assert peak <= budget
        assert resident - without <= budget + (most >> 4)
    assert rest[-1][1] - without > most // 2  # what is measured is what was kept
