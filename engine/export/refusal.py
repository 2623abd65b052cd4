"""The error that names, layer by layer, what a target cannot hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from engine.errors import InfeasibleError

_MOST_NAMED = 5


class NotExportable(InfeasibleError):
    """Layers that a target, or a program that loads its files, cannot store in their formats."""

    def __init__(
        self, refused: Mapping[str, str], form: str, nearest: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            refused: reasons by layer.
            form: what cannot hold them.
            nearest: by layer, the nearest format that it can hold, or ``kept``.
        """
        self.refused, self.form = dict(refused), form
        """Reasons by layer."""
        self.nearest = dict(nearest or {})
        alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        for layer, why in refused.items():
            alike[why, self.nearest.get(layer, "")].append(layer)
        lines = [
            f"  {some_of(layers)}: {why}" + (f" (nearest: {instead})" if instead else "")
            for (why, instead), layers in alike.items()
        ]
        count = f"{len(refused)} layer{'s' if len(refused) > 1 else ''}"
        hint = ", or take the nearest formats with --nearest" if self.nearest else ""
        super().__init__(
            f"{count} of this recipe cannot be written as {form}; "
            f"give them another format or keep them{hint}\n" + "\n".join(lines)
        )


def some_of(names: list[str]) -> str:
    """The first names, and the number of others."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
