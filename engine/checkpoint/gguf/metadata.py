"""The metadata of a GGUF file, read as what each key should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from engine.checkpoint.gguf.header import Value
from engine.errors import CheckpointError


@dataclass(frozen=True)
class Metadata:
    """Entries by key; each method refuses a value of another kind, and names file and key."""

    file: Path
    values: Mapping[str, Value]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def whole(self, key: str, default: int | None = None) -> int:
        """A count, not negative.

        Raises:
            CheckpointError: it is missing and has no default, or is none.
        """
        found = self._value(key, default)
        if type(found) is not int or not 0 <= found < 2**31:
            self._refuse(key, found, "a count")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number; raises as `whole` does."""
        found = self._value(key, default)
        if type(found) not in (int, float) or not math.isfinite(found):  # type: ignore[arg-type]
            self._refuse(key, found, "a number")
        return float(found)  # type: ignore[arg-type]

    def flag(self, key: str, default: bool) -> bool:
        """Yes or no; raises as `whole` does."""
        found = self._value(key, default)
        if not isinstance(found, bool):
            self._refuse(key, found, "yes or no")
        return found

    def text(self, key: str, default: str | None = None) -> str:
        """A string; raises as `whole` does."""
        found = self._value(key, default)
        if not isinstance(found, str):
            self._refuse(key, found, "text")
        return found

    def texts(self, key: str) -> list[str]:
        """A list of strings; raises as `whole` does."""
        found = self._value(key, None)
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            self._refuse(key, found, "a list of texts")
        return found  # type: ignore[return-value]

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers; None where it is missing."""
        if key not in self.values:
            return None
        found = self.values[key]
        if not isinstance(found, list) or any(isinstance(each, str) for each in found):
            self._refuse(key, found, "a list of numbers")
        return found  # type: ignore[return-value]

    def _value(self, key: str, default: Value | None) -> Value:
        found = self.values.get(key, default)
        if found is None:
            raise CheckpointError(
                f"{self.file} has no {key!r}, which a model needs; convert it again"
            )
        return found

    def _refuse(self, key: str, found: Value, wanted: str) -> NoReturn:
        shown = f"{found!r}"[:60]
        raise CheckpointError(
            f"{self.file} gives {key!r} as {shown}, not as {wanted}; convert it again"
        )
