"""What an export leaves while each of its writes fails or kills it: run by `test_failing_exports`.

    LD_PRELOAD=failing_writes.so python -m tests.faults.failing_exports FOLDER STEP

prints a JSON object with the number of runs, and what was wrong: another error than a sentence of
ours, anything beside a failed export, anything at all in the place of one that was killed, files
that differ though no error was raised.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.checkpoint import open_checkpoint
from engine.errors import EngineError
from engine.export.writer import Request, writer_of
from tests.checkpoint.gguf.models import build

RECIPES = {
    target: {"model.layers.0.mlp.down_proj": down, "model.layers.0.mlp.up_proj": up}
    for target, down, up in (
        ("checkpoint", "int4-g32", "int8"),
        ("gptq", "int4-g32", "int8-g32"),
        ("gguf", "q8_0", "q4_0"),
    )
}
"""A recipe of each target that writes a checkpoint."""
FAILURES = {"disk full": errno.ENOSPC, "input or output error": errno.EIO, "killed": 0}


def export(model: Path, out: Path, target: str) -> None:
    """Write a checkpoint, not loaded again: that is another process, with writes of its own."""
    request = Request(checkpoint=open_checkpoint(model), recipe=RECIPES[target], out=out)
    writer_of(target).write(request)


def content(path: Path) -> Mapping[str, bytes]:
    """Every file below a path, with its bytes."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


class Exports:
    """Exports into a folder whose writes can fail."""

    def __init__(self, folder: Path, shim: ctypes.CDLL) -> None:
        self.model = build("llama", folder / "model")
        self.into = folder / "failing"
        self.shim = shim

    def wrong(self, target: str, at: int, error: int, *, ever: bool) -> str:
        """What is wrong after a failure; empty if nothing is."""
        self._empty()
        out = self.into / "out"
        self.shim.arm(at, error, int(ever))
        try:
            export(self.model, out, target)
        except EngineError:
            left = [file.name for file in self.into.iterdir()]
            return f"left {left}" if left else ""
        except Exception as raised:  # noqa: BLE001 -- whatever it is, it is what is wrong
            return f"{type(raised).__name__}: {raised}"
        finally:
            self.shim.arm(0, 0, 0)
        return "" if content(out) == self.whole[target] else "an export that differs"

    def wrong_when_killed(self, target: str, at: int) -> str:
        """What is wrong after the process was killed; empty if nothing is."""
        self._empty()
        out = self.into / "out"
        child = os.fork()
        if child == 0:
            self.shim.arm(at, 0, 0)
            export(self.model, out, target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return f"was not killed: {status}"
        if out.exists():
            return "something stands in its place"
        export(self.model, out, target)
        left = [file.name for file in self.into.iterdir() if file != out]
        return f"the next export left {left}" if left else ""

    def count(self, target: str) -> int:
        """The writes of an export; remembers what it wrote."""
        self._empty()
        self.shim.arm(10**9, 0, 0)
        export(self.model, self.into / "out", target)
        self.whole = {target: content(self.into / "out")}
        seen = self.shim.writes_seen()
        self.shim.arm(0, 0, 0)
        return int(seen)

    def _empty(self) -> None:
        shutil.rmtree(self.into, ignore_errors=True)
        self.into.mkdir()


def failures(exports: Exports, step: int) -> Iterator[tuple[str, str]]:
    """Every failure by its name, with what is wrong."""
    for target in RECIPES:
        writes = exports.count(target)
        for number, (name, error) in enumerate(FAILURES.items()):
            for at in range(1 + number % step, writes + 1, step):
                what = f"{target}: {name} at write {at} of {writes}"
                if error:
                    yield what, exports.wrong(target, at, error, ever=False)
                    yield f"{what} and after", exports.wrong(target, at, error, ever=True)
                else:
                    yield what, exports.wrong_when_killed(target, at)


def main() -> None:
    """See the module's own words."""
    logging.disable(logging.CRITICAL)
    exports = Exports(Path(sys.argv[1]), ctypes.CDLL(None))
    found = dict(failures(exports, int(sys.argv[2])))
    wrong = {what: why for what, why in found.items() if why}
    sys.stdout.write(json.dumps({"runs": len(found), "wrong": wrong}))


if __name__ == "__main__":
    main()
