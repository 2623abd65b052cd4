"""Continuations run again in one forward, whoever wrote them: what a network would have said.

Rows are padded on the right: no token looks at what comes after it, so nothing needs a mask, and
the network is resumed from its blocks as on any other text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.model.network import Held, Network

SCORED = 256
"""Tokens of a continuation that are scored: the first ones."""
BYTES = 128 << 20
"""Of the log-probabilities of one batch."""


class Forced:
    """A batch of prompts with their continuations.

    Args:
        network: at rest.
        prompts: token ids.
        continuations: token ids, not empty; the first `SCORED` are used.
    """

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
    ) -> None:
        self.network = network
        said = [list(each[:SCORED]) for each in continuations]
        rows = [[*prompt, *each] for prompt, each in zip(prompts, said, strict=True)]
        longest = max(map(len, rows))
        self.ids = torch.zeros(len(rows), longest, dtype=torch.long)
        self.said = torch.zeros(len(rows), longest, dtype=torch.bool)
        """At which positions the next token is one of the continuation."""
        for row, (ids, each) in enumerate(zip(rows, said, strict=True)):
            self.ids[row, : len(ids)] = torch.tensor(ids)
            self.said[row, len(ids) - len(each) - 1 : len(ids) - 1] = True
        somewhere = self.said.any(0).nonzero().flatten()
        self._span = int(somewhere[0]), int(somewhere[-1]) + 1
        self.ids = self.ids.to(network.device)
        rows_of = self.said.nonzero()[:, 0]
        self.row = rows_of.to(network.device)
        """The row of every token that is scored, in order, ``[scored]``."""

    @torch.no_grad()
    def log_probabilities(
        self, held: Mapping[str, Held], at: int = -1, state: Tensor | None = None
    ) -> Tensor:
        """Of every next token of the continuations, float32 ``[scored, vocabulary]``.

        Args:
            held: what the network computes with.
            at: the block that is given ``state``; see `Network.final_state`.
            state: the input of that block.

        Raises:
            Preempted: a more urgent job waits.
        """
        network, span = self.network, self._span
        with network.holding(held):
            last = network.final_state(self.ids, at, state)
            logits = network.logits(self.ids, last, span)
        said = self.said[:, span[0] : span[1]].to(logits.device)
        return logits[said].float().log_softmax(-1)

    def surprise(self, logp: Tensor) -> list[float]:
        """Mean NLL of each row's continuation, nats per token.

        Args:
            logp: see `log_probabilities`.
        """
        following = self.ids[:, 1:][self.said[:, :-1].to(self.ids.device)]
        return self.means(-logp.gather(-1, following.unsqueeze(-1)).squeeze(-1))

    def means(self, values: Tensor) -> list[float]:
        """Mean over the tokens of each row.

        Args:
            values: ``[scored]``.
        """
        count = len(self.ids)
        sums = torch.zeros(count, dtype=torch.float64, device=values.device)
        sums.index_add_(0, self.row, values.double())
        counts = torch.bincount(self.row, minlength=count)
        found: list[float] = (sums / counts).tolist()
        return found


def divergence(reference: Tensor, changed: Tensor) -> Tensor:
    """``KL(reference ‖ changed)`` of each token, nats, float32 ``[tokens]``.

    Args:
        reference: log-probabilities ``[tokens, vocabulary]``.
        changed: the same of the other network.
    """
    return (reference.exp() * (reference - changed)).sum(-1)


def rows_at_once(network: Network, tokens: int) -> int:
    """Rows of a batch whose log-probabilities stay within `BYTES`.

    Args:
        network: whose vocabulary it is.
        tokens: of the longest continuation.
    """
    vocabulary: int = network.model.get_input_embeddings().weight.shape[0]
    return max(1, BYTES // (4 * vocabulary * min(tokens, SCORED)))
