"""How much AWQ's scales depend on the calibration set.

``python -m tests.bench.awq_scales [METHOD]``: on the demo, with 32 windows of 256 tokens of each
set. For every fold group, a table has the exponent that each set gives, the squared output error
over that of rounding to nearest, the share of channels with the same scale as with code, and the
median over channels of how far scales differ.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import Any

from engine import protocol as p
from engine.client import in_process
from engine.measure.calibrating import comparing
from engine.measure.calibration import solve
from engine.quant.methods.channel_scales import Folded

SETS = ("code", "prose", "random")


def scales(method: str) -> dict[str, dict[str, Folded]]:
    """By set and by a layer of the group, the scale that was found."""
    found: dict[str, dict[str, Folded]] = {name: {} for name in SETS}
    at = [""]
    find, quantise = solve.awq, comparing.quantised

    def noting(
        weights: Any, statistics: Any, fmt: Any, dtype: Any, name: str, **how: Any
    ) -> Folded:
        found[at[0]][name] = find(weights, statistics, fmt, dtype, name, **how)
        return found[at[0]][name]

    def naming(*given: Any) -> Generator[Any, None, Any]:
        at[0] = given[-1].split()[0]
        return (yield from quantise(*given))

    solve.awq, comparing.quantised = noting, naming  # type: ignore[assignment]
    try:
        with closing(in_process("demo")) as client:
            client.send(p.Open("demo", p.Settings(tokens=256, seq_len=256, fresh=True)))
            client.send(p.Calibrate(sets=SETS, method=method, samples=(32,), halves=False))
            while True:
                match client.receive(1.0):
                    case p.JobEnded(kind="calibrate") as end:
                        assert end.status == "done", end.message
                        return found
                    case p.Refused() as refused:
                        raise SystemExit(refused.message)
    finally:
        solve.awq, comparing.quantised = find, quantise


def main() -> None:
    """Print the table."""
    found = scales(sys.argv[1] if len(sys.argv) > 1 else "int3-g128+awq")
    rows = []
    print("| group | exponents: code, prose, random | error | same: prose, random | octaves |")
    print("|---|---|---|---|---|")
    for name, code in found["code"].items():
        others = [found[other][name] for other in SETS[1:]]
        strengths = [code.strength, *(each.strength for each in others)]
        same = [float((code.scale == each.scale).double().mean()) for each in others]
        apart = [float((code.scale / each.scale).log2().abs().median()) for each in others]
        rows.append([*strengths, code.error / code.plain, *same, *apart])
        cells = [strengths, [rows[-1][3]], same, apart]
        print(
            f"| {name} | " + " | ".join(" ".join(f"{x:.3f}" for x in cell) for cell in cells) + " |"
        )
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    print("mean", *(f"{each:.3f}" for each in means))


if __name__ == "__main__":
    main()
