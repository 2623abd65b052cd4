"""llama.cpp through its program ``llama-bench``, where no package of Python has it.

It times one sequence and says how long each repetition took, not each token: there are no
percentiles, and batches of more than one sequence are refused.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from engine.runtimes.child import Request
from engine.runtimes.drivers.decoding import layers_on_device
from engine.runtimes.memory import peak_of_children


def command(request: Request, prompt: int, new: int, depth: int) -> list[str]:
    """A run of it: a prompt, or tokens generated after ``depth`` others."""
    return [
        "llama-bench", "-m", request["path"], "-o", "json",
        "-r", str(request["repeats"]), "-t", str(request["threads"]),
        "-ngl", str(layers_on_device(request["device"])),
        "-p", str(prompt), "-n", str(new), "-d", str(depth),
    ]  # fmt: skip


def asked(request: Request, prompt: int, new: int, depth: int) -> dict[str, Any]:
    """Run it, and read what it found.

    Raises:
        RuntimeError: it failed, or said nothing that can be read.
    """
    done = subprocess.run(
        command(request, prompt, new, depth), capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0:
        why = lines[-1] if lines else f"exit status {done.returncode}"
        raise RuntimeError(f"llama-bench failed: {why}")
    try:
        found: dict[str, Any] = json.loads(done.stdout)[0]
        found["samples_ns"]
    except (ValueError, LookupError, TypeError) as error:
        raise RuntimeError("llama-bench printed no JSON that can be read") from error
    return found


def runs(request: Request) -> Iterator[dict[str, Any]]:
    """What `engine.runtimes.child.answers` says, from two runs of the program."""
    if request["batches"] != [1]:
        raise RuntimeError(
            "llama-bench runs one sequence: leave out --batch, or install llama-cpp-python"
        )
    yield {"kind": "progress", "done": 0, "total": 2, "subject": "llama-bench, prompt"}
    first = asked(request, request["prompt"], 0, 0)
    yield {"kind": "progress", "done": 1, "total": 2, "subject": "llama-bench, generation"}
    then = asked(request, 0, request["new"], request["prompt"])
    on_gpu = request["device"] != "cpu" and first.get("gpu_info")
    about = {
        "version": f"llama-bench {first['build_number']} ({first['build_commit']})",
        "device": str(first["gpu_info"]) if on_gpu else "cpu",
        "threads": str(first["n_threads"]),
        "backends": str(first.get("backends", "")),
    }
    yield {"kind": "loaded", "seconds": None, "about": about}
    yield {
        "kind": "batch",
        "batch": 1,
        "runs": [
            {"prompt_s": prompt / 1e9, "whole_s": new / 1e9, "generated": request["new"]}
            for prompt, new in zip(first["samples_ns"], then["samples_ns"], strict=True)
        ],
        "peak_bytes": peak_of_children(),
        "device_bytes": None,
    }
