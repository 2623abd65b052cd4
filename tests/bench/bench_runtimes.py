"""``qtui bench`` beside ``llama-bench``, by turns, on one file and the same build of llama.cpp.

    python -m tests.bench.bench_runtimes FILE.gguf --llama-bench PROGRAM [--python PATH]

``PROGRAM`` and the package llama-cpp-python that ``PATH`` has must use one libllama:
``LLAMA_CPP_LIB_PATH`` names its folder for the package. Prints tokens per second of both in every
round, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess

import engine


def theirs(program: str, file: str, prompt: int, new: int, threads: int) -> tuple[float, float]:
    """Tokens per second of prompt and of generation, as llama-bench counts them."""

    def asked(p: int, n: int, depth: int) -> float:
        words = ["-p", p, "-n", n, "-d", depth, "-t", threads, "-r", 5, "-ngl", 0, "-o", "json"]
        done = subprocess.run(
            [program, "-m", file, *map(str, words)], capture_output=True, check=True
        )
        return float(json.loads(done.stdout)[0]["avg_ts"])

    return asked(prompt, 0, 0), asked(0, new, prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--python")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ratios = []
    for _ in range(given.rounds):
        one = theirs(given.llama_bench, given.file, given.prompt, given.new, given.threads)
        document = engine.bench(
            given.file, runtime="llama.cpp", python=given.python, prompt=given.prompt,
            new=given.new, threads=given.threads, device="cpu",
        )  # fmt: skip
        (batch,) = document.batches
        other = batch.prompt_tokens_per_s or 0.0, batch.tokens_per_s or 0.0
        ratios.append((other[0] / one[0], other[1] / one[1]))
        print(
            f"llama-bench pp {one[0]:.1f} tg {one[1]:.1f}; qtui ({document.version}) "
            f"pp {other[0]:.1f} tg {other[1]:.1f}",
            flush=True,
        )
    prompt, new = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"median of {given.rounds} ratios: prompt {prompt:.3f}, generation {new:.3f}")


if __name__ == "__main__":
    main()
