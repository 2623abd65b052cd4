"""The result of inspecting a path or hub id before it is opened; nothing is downloaded.

The process `engine.opening.inspect` does the work: no library is imported here.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

INSPECTION_SECONDS = 20.0
"""Timeout of an inspection, in seconds; headers on a slow network drive take time."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a path or a hub id is, from headers only."""

    source: str
    name: str = ""
    path: str = ""
    """The folder; empty if there is none yet."""
    architecture: str = ""
    parameters: int = 0
    """0 if it cannot be known without reading the weights."""
    bytes: int = 0
    dtype: str = ""
    layers: int = 0
    note: str = ""
    """Information that prevents nothing: from the cache, to be downloaded, stored in fp8."""
    problem: str = ""
    """Why it cannot be opened, as a sentence; empty if no problem was found."""
    advice: str = ""
    """What to do instead, if known."""


async def inspect_source(
    source: str, *, trust_remote_code: bool = False, timeout: float = INSPECTION_SECONDS
) -> Inspection:
    """Inspect ``source`` in a process of its own, which ends with this call.

    Raises nothing except on cancellation: any error becomes the ``problem``.
    """
    words = [sys.executable, "-P", "-m", "engine.opening.inspect"]
    words += ["--trust-remote-code"] if trust_remote_code else []
    try:
        process = await asyncio.create_subprocess_exec(
            *words, "--", source,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return Inspection(source=source, problem=f"{source} cannot be inspected: {error}")
    try:
        async with asyncio.timeout(timeout):
            output, complaint = await process.communicate()
    except TimeoutError:
        return Inspection(
            source=source,
            problem=f"{source} could not be read within {timeout:.0f} s",
            advice="its drive may be slow or disconnected; opening it waits longer",
        )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(output, type=Inspection)
    except msgspec.DecodeError:
        lines = complaint.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit code {process.returncode}"
        return Inspection(source=source, problem=f"{source} could not be inspected: {why}")
