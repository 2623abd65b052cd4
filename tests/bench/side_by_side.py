"""Ten tokens of two sets of weights side by side, against each of them alone.

    python -m tests.bench.side_by_side demo [--prompts 4] [--repeats 5]

Alone: a loop that holds its weights once and takes all tokens. Side by side: steps in turn, as the
job takes them, the network checked to be at rest after each. Prints the ratio of the medians, which
should be below 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import time

from engine.demo import DEMO_PATH
from engine.formats.grammar import parse_format
from engine.model.generation import Generation
from engine.model.load import load_network
from engine.quant.quantize import dequantized

TOKENS = 10


def main() -> None:
    """Time both ways in turn."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model")
    given.add_argument("--prompts", type=int, default=4)
    given.add_argument("--repeats", type=int, default=5)
    asked = given.parse_args()
    network = load_network(DEMO_PATH if asked.model == "demo" else asked.model, device="cpu")
    format = parse_format("int4-g128")
    held = {
        name: dequantized(network.weight(name), format, network.dtype, name)
        for name, layer in network.layers.items()
        if layer.block is not None
    }
    prompts = [[5 + row, 9, 14, 3, 7, 40] * 3 for row in range(asked.prompts)]

    def new(of: bool) -> Generation:
        return Generation(network, prompts, held=held if of else {}, new_tokens=TOKENS)

    def alone() -> float:
        begun = time.perf_counter()
        for of in (False, True):
            batch = new(of)
            while not batch.done:
                batch.step(float("inf"))
        return time.perf_counter() - begun

    def beside() -> float:
        begun = time.perf_counter()
        both = new(False), new(True)
        while not all(batch.done for batch in both):
            for batch in both:
                if not batch.done:
                    batch.step()
                    network.assert_at_rest()
        return time.perf_counter() - begun

    alone(), beside()
    times = [(alone(), beside()) for _ in range(asked.repeats)]
    one, other = (statistics.median(each) for each in zip(*times, strict=True))
    print(f"{asked.model}: {TOKENS} tokens of {asked.prompts} prompts, alone {one:.3f} s, "
          f"side by side {other:.3f} s: {other / one:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
