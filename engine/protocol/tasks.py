"""What came of tasks that a reference and a recipe answered."""

from __future__ import annotations

import msgspec


class Answered(msgspec.Struct, frozen=True):
    """One item of a task whose answer a recipe changed."""

    id: str
    prompt: str
    """The end of it."""
    right: str
    """The right answer."""
    reference: str
    """What the reference answered; empty where an answer must be written exactly and was not."""
    recipe: str
    """What the recipe answered."""
    reference_right: bool
    recipe_right: bool


class Agreeing(msgspec.Struct, frozen=True):
    """How many items both, one or neither answered right, by one metric."""

    metric: str
    """``acc``: by the likelihood of the answers; ``acc_norm``: by that over their characters;
    ``exact``: whether the answer is what is written greedily. Or a metric of lm-eval."""
    both: int
    lost: int
    """The reference only."""
    gained: int
    """The recipe only."""
    neither: int

    @property
    def items(self) -> int:
        """All of them."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def flips(self) -> int:
        """Items that were right and are wrong, or the other way."""
        return self.lost + self.gained


class TaskResult(msgspec.Struct, frozen=True):
    """A task, answered by a reference and by a recipe."""

    name: str
    metrics: tuple[Agreeing, ...]
    """The first one is what ``items`` are judged by."""
    changed: int
    """Items whose answer changed, also from one wrong answer to another."""
    items: tuple[Answered, ...]
    """Of these the first ones, those that flipped before others."""
