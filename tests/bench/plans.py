"""Plans beside simpler rules, measured: ``qtui plan`` for several budgets, as a user runs it.

    python -m tests.bench.plans MODEL --bits 3.25,3.5,4.25 [--text FILE --tokens N --seq-len N]

One row a budget: KL·10³ of the plan, what was predicted for it, and of the rules within the same
budget, all measured on the same windows; and the plan's KL over that of the best rule.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

RULES = ("uniform", "first-last", "greedy")


def planned(model: str, bits: float, further: list[str]) -> dict[str, Any]:
    """The document of one plan."""
    command = [sys.executable, "-m", "qtui", "plan", model, "--bits", str(bits), "--json", "-"]
    done = subprocess.run([*command, *further], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    ours = found["measured"]["kl"]
    rules = {
        name: point["measured"]["kl"]
        for name, point in found["baselines"].items()
        if "measured" in point
    }
    best = min(rules.values(), default=float("nan"))
    return [
        f"{found['budget']['bits']:g}",
        f"{1000 * ours:.2f} ± {1000 * found['measured']['kl_se']:.2f}",
        f"{1000 * found['predicted']['kl']:.2f}",
        *(f"{1000 * rules[name]:.2f}" if name in rules else "" for name in RULES),
        f"{ours / best:.2f}",
        f"{found['forwards']:g}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--bits", default="3.25,3.5,4.25,4.5,5.25")
    given, further = parser.parse_known_args()
    heads = ["bits", "plan", "predicted", *RULES, "plan / best rule", "forwards"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for bits in map(float, given.bits.split(",")):
        print("| " + " | ".join(row(planned(given.model, bits, further))) + " |", flush=True)


if __name__ == "__main__":
    main()
