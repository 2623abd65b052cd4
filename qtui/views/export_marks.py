"""What a chosen export target makes of the recipe while it is tuned, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from engine.diagnosis.serving import Serving
from engine.export.held import mixed, nearest, refused, untied, weights_of, why_not
from engine.export.serving import serving
from engine.export.target import Target, Weight, target_named
from engine.formats.grammar import parse_format
from engine.session import Session


class Mark(NamedTuple):
    """What is said of a layer."""

    kind: Literal["refused", "mixed", "untied"]
    """The target cannot hold it; what reads the target cannot use its fused group; its head and
    embedding become two tensors."""
    why: str


class ExportMarks:
    """The marks of all layers for one target, worked out again when the recipe changes."""

    def __init__(self) -> None:
        self.target: Target | None = None
        """The chosen target; None for none."""
        self.chosen = False
        """Whether a target, or none, was ever chosen."""
        self.by_layer: Mapping[str, Mark] = {}
        """Marks of the layers that have one."""
        self._of: tuple[object, ...] = ()
        self._serving: tuple[object, str, Serving] | None = None

    def choose(self, name: str) -> None:
        """Choose a target by its name, or none."""
        self.target = target_named(name) if name else None
        self.chosen = True
        self._of = ()

    @property
    def name(self) -> str:
        """The target's name; empty for none."""
        return self.target.name if self.target is not None else ""

    def serving(self, session: Session) -> Serving:
        """What recipes may have: what the target holds, or without one what some kernel takes."""
        found = self._serving
        if not self.name:
            return serving(session, "")
        if found is None or found[0] is not session.layers or found[1] != self.name:
            found = self._serving = session.layers, self.name, serving(session, self.name)
        return found[2]

    def update(self, session: Session) -> bool:
        """Work the marks out for the session's recipe; whether they may have changed."""
        now = (self.name, id(session), session.layers, session.at, session.position)
        if self._of and all(a is b or a == b for a, b in zip(now, self._of, strict=True)):
            return False
        self._of = now
        before = self.by_layer
        self.by_layer = self._found(session) if self.target is not None else {}
        return self.by_layer != before

    def _found(self, session: Session) -> dict[str, Mark]:
        target, recipe = self.target, session.changed
        assert target is not None
        weights = weights_of(session)
        found = {name: Mark("untied", why) for name, why in untied(target, weights, recipe).items()}
        found |= {name: Mark("mixed", why) for name, why in mixed(target, weights, recipe).items()}
        return found | {
            name: Mark("refused", why) for name, why in refused(target, weights, recipe).items()
        }

    def refusal(self, session: Session, layers: Sequence[str], format: str) -> str:
        """Why the target cannot hold some of these layers in a format; empty if it can all.

        What must be alike with layers outside of these is not looked at.
        """
        if self.target is None or format == "kept" or not layers:
            return ""
        fmt = parse_format(format)
        wanted = frozenset(layers)
        alike: dict[tuple[object, ...], list[Weight]] = {}
        for weight in weights_of(session):
            if weight.name in wanted:
                key = weight.shape, weight.role, weight.tied, weight.kind
                alike.setdefault(key, []).append(weight)
        reasons = {
            each[0]: (len(each), why)
            for each in alike.values()
            if (why := why_not(self.target, fmt, each[0])) is not None
        }
        if not reasons:
            return ""
        first, (_, why) = next(iter(reasons.items()))
        number = sum(number for number, _ in reasons.values())
        few = "" if number == len(layers) else f"{number} of {len(layers)} layers: "
        near = nearest(self.target, fmt, first)
        return f"{self._named(why)}{few}{why} (nearest: {near})"

    def _named(self, why: str) -> str:
        """The target's name before a reason that does not have it."""
        return "" if self.name in why.lower().replace(" ", "-") else f"{self.name}: "

    @property
    def refuses(self) -> bool:
        """Whether the recipe cannot be written for the target as it is."""
        return any(mark.kind == "refused" for mark in self.by_layer.values())

    def said_of(self, layer: str | None) -> tuple[bool, str] | None:
        """Whether a layer cannot be held, and why; None where nothing is to be said."""
        mark = self.by_layer.get(layer or "")
        return None if mark is None else (mark.kind == "refused", self._named(mark.why) + mark.why)

    def summary(self) -> str:
        """How many layers the target cannot hold, or serve; for the line above the table."""
        if self.target is None:
            return ""
        kinds = Counter(mark.kind for mark in self.by_layer.values())
        said = [f"cannot hold {_counted(kinds['refused'])}"] if kinds["refused"] else []
        said += [f"{_counted(kinds['mixed'])} in mixed groups"] if kinds["mixed"] else []
        said += ["head and embedding untied"] if kinds["untied"] else []
        return f"for {self.name}: {', '.join(said) or 'holds all'}"


def _counted(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"
