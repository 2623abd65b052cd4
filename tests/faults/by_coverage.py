"""The changes of `tests.faults.fuzzing`, chosen by what of the readers they reach (atheris).

atheris is no dependency: it needs an environment that has it and what qtui needs. There

    python -m tests.faults.by_coverage -runs=100000

breaks that many checkpoints; libFuzzer prints its progress, and the first fault ends it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


class Chosen:
    """`tests.faults.fuzzing.Random` by the bytes that libFuzzer gives."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def randrange(self, start: int, stop: int) -> int:
        """A whole number below ``stop``."""
        return int(self._given.ConsumeIntInRange(start, max(start, stop - 1)))

    def choice(self, seq: Any) -> Any:
        """One of a sequence."""
        return seq[self.randrange(0, len(seq))]

    def random(self) -> float:
        """A number from 0 to 1."""
        return float(self._given.ConsumeProbability())


def main() -> None:
    """See the module's own words."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["engine.checkpoint"]):
        fuzzing = importlib.import_module("tests.faults.fuzzing")
    with tempfile.TemporaryDirectory() as name:

        def one(data: bytes) -> None:
            found = fuzzing.fault(Path(name), Chosen(atheris.FuzzedDataProvider(data)))
            assert not found, found

        atheris.Setup(
            [
                "by_coverage",
                "-max_len=512",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                *sys.argv[1:],
            ],
            one,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
