"""Runs ``llama-perplexity``, and lays the tables that it prints beside ours.

It is a tool of llama.cpp: ``cmake -B build && cmake --build build --target llama-perplexity`` in
its sources, which llama-cpp-python's package on PyPI carries too (``vendor/llama.cpp``).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRIES = 20
"""Runs for one table: the program may end before its log is written."""
Table = dict[str, list[float]]
"""A figure, or a figure and its uncertainty, by llama.cpp's names."""


@dataclass(frozen=True)
class LlamaPerplexity:
    """The program, and what all runs share."""

    program: str
    context: int
    threads: int = 1

    def save(self, model: Path, text: Path, out: Path, chunks: int) -> None:
        """Write the logits file of a model on a text."""
        size = ["-f", str(text), "--chunks", str(chunks)]
        self._run(model, *size, "--kl-divergence-base", str(out))

    def compare(self, model: Path, logits: Path) -> Table:
        """What it prints of a model against a logits file."""
        given = ["--kl-divergence-base", str(logits), "--kl-divergence"]
        for _ in range(TRIES):
            _, start, printed = self._run(model, *given).partition("====== Perplexity statistics")
            found = {}
            for line in printed.splitlines():
                name, colon, numbers = line.partition(":")
                if colon:
                    figures = re.findall(r"-?\d+\.\d+", numbers)
                    found[" ".join(name.split())] = [float(each) for each in figures]
            if start and "Same top p" in found:
                return found
        raise SystemExit(f"{self.program} printed no whole tables in {TRIES} runs")

    def _run(self, model: Path, *words: str) -> str:
        """Keys and values in float32, attention not fused: only weights and inputs are rounded."""
        exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-repack"]
        size = ["-c", str(self.context), "-t", str(self.threads)]
        given = [self.program, "-m", str(model), *words, *exact, *size]
        done = subprocess.run(given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.program} failed: {(done.stderr or done.stdout)[-2000:]}")
        return done.stdout


def qtui_compare(home: Path, *words: object) -> dict[str, Any]:
    """The document that ``qtui compare`` writes."""
    out = home / "compare.json"
    given = [sys.executable, "-m", "qtui", "compare", *map(str, words), "--json", str(out)]
    subprocess.run(given, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


_NAMES = {"mean": "Mean", "max": "Maximum", "min": "Minimum", "median": "Median"}


def beside(ours: dict[str, Any], theirs: Table) -> dict[str, tuple[float, float]]:
    """Figures of both, by llama.cpp's names and in its units.

    Args:
        ours: ``divergence`` of an artefact in a document of ``qtui compare``.
        theirs: what llama.cpp printed.
    """
    found = {
        "Mean PPL(Q)": ours["ppl"],
        "Mean PPL(base)": ours["ppl_base"],
        "Mean ln(PPL(Q)/PPL(base))": ours["ln_ratio"],
        "Cor(ln(PPL(Q)), ln(PPL(base)))": 100 * ours["correlation"],
        "Same top p": 100 * ours["same_top"],
        "RMS Δp": 100 * ours["delta_p"]["rms"],
    }
    for kind, table, unit in (("KLD", ours["kld"], 1), ("Δp", ours["delta_p"], 100)):
        for key, value in table.items():
            if not key.endswith("_se") and key != "rms":
                said = _NAMES.get(key) or f"{float(key[:-1]):.1f}%"
                found[f"{said} {kind}"] = unit * value
    return {name: (value, theirs[name][0]) for name, value in found.items()}
