"""A checkpoint streamed under a quarter of its size, beside the same one in memory.

``python -m tests.bench.bench_streamed [FOLDER]`` writes 1.2 GB of random weights in 24 blocks, and
sweeps them with estimates alone in processes of their own. The folder is removed afterwards. A
figure that differs, or a peak beyond budget + 300 MB, ends it with status 1.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 10**6
BLOCKS, WIDTH, INNER = 24, 1024, 2816
FORMATS = ("int4-g128", "int8")
SLACK = 300 * MB
"""Beyond the budget, for what the products of a micro-batch take."""
TOKENS = 512


def write(folder: Path) -> None:
    """The checkpoint, and a text to measure it on."""
    from tests import tiny

    tiny.build(
        "llama", folder, num_hidden_layers=BLOCKS, hidden_size=WIDTH, intermediate_size=INNER,
        num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=256, shards=4,
    )  # fmt: skip
    (folder / "text.txt").write_text("a block is read once for everything that needs it. " * 4000)


def peak() -> int:
    """The largest resident size of this process so far, in bytes.

    Not that of ``getrusage``, which a process begins with its parent's.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status says nothing of VmHWM")


def measure(folder: Path, budget: int | None) -> None:
    """Sweep, and print what it took as JSON."""
    import transformers

    from engine.measure.sweep.sweep import sweep
    from engine.model.streamed_blocks import StreamedBlocks
    from engine.store.facts import FactStore
    from tests.drive import load, settings
    from tests.measure.test_streamed import learnt

    assert transformers.LlamaForCausalLM
    imports = peak()
    chosen = settings(
        folder / "text.txt", tokens=TOKENS, seq_len=128, batch_tokens=512, memory_budget=budget
    )
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as state:
        loaded = load(folder, FactStore(Path(state) / "facts"), chosen)
        opened = time.perf_counter()
        blocks = loaded.network.blocks
        before = list(blocks.reads) if isinstance(blocks, StreamedBlocks) else []
        facts = learnt(sweep(loaded, FORMATS, "degrade", "job", exact="none"))
    ended = time.perf_counter()
    found: dict[str, object] = {
        "imports": imports,
        "peak": peak() - imports,
        "open_s": opened - begun,
        "sweep_s": ended - opened,
        "facts": {key: repr(fact) for key, fact in facts.items()},
    }
    if isinstance(blocks, StreamedBlocks):
        after = [now - then for now, then in zip(blocks.reads, before, strict=True)]
        found |= {"opening": max(before), "reads": max(after), "waited": blocks.waited}
        found["read_s"] = blocks.spent
    print(json.dumps(found))


def run(folder: Path, budget: int | None) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.bench_streamed", str(folder), str(budget or 0)]
    answer = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> int:
    """Write, measure, print, remove."""
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), int(sys.argv[2]) or None)
        return 0
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "checkpoint"
    try:
        write(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        budget = size // 4
        # What was just written is in the page cache.
        resident, streamed = run(folder, None), run(folder, budget)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    same = resident["facts"] == streamed["facts"]
    over = streamed["peak"] - budget
    ratio = streamed["sweep_s"] / resident["sweep_s"]
    print(f"checkpoint {size / MB:.0f} MB, budget {budget / MB:.0f} MB, {BLOCKS} blocks")
    for name, found in (("in memory", resident), ("streamed", streamed)):
        print(
            f"{name}: opened in {found['open_s']:.1f} s, sweep of estimates {found['sweep_s']:.1f} "
            f"s, peak {found['peak'] / MB:.0f} MB above the imports"
        )
    print(
        f"streamed: {streamed['opening']:.0f} readings to open, {streamed['reads']:.0f} for the "
        f"sweep (2 for estimates, 1 for the control); {streamed['read_s']:.1f} s of reading, of "
        f"which {streamed['waited']:.1f} s were waited for"
    )
    print(f"sweep: {ratio:.2f} x   aim: at most 1.6")
    print(f"peak: budget {over / MB:+.0f} MB   aim: at most +{SLACK / MB:.0f}")
    print(f"{len(resident['facts'])} facts equal: {same}")  # type: ignore[arg-type]
    return 0 if same and over <= SLACK and streamed["reads"] == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
