"""What the unchanged network gives on every micro-batch, kept within a budget of bytes.

A change at block *k* is measured from the hidden state before block *k* on, against the
reference's logits. States of every block are kept where they fit, of every second, fourth, …
where they do not; logits are kept where they fit, else made again from the last state. What is
kept changes how long a measurement takes, never its value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.measure.perplexity import Tally, Windows, compare
from engine.model.network import Held, Network

CHUNK_BYTES = 16 << 20
"""Logits of one chunk of positions, in bytes of float32."""
PIECE_BYTES = 4 << 20
"""Logits compared at once on a CPU, in bytes of float32."""
CHUNK_MULTIPLE = 16
"""Positions come in multiples of this: odd sizes round differently."""


class Reference:
    """The unchanged network on one set of windows.

    Batch and chunk shapes are fixed here once, and are the same for reference and candidates.
    """

    def __init__(self, network: Network, windows: Windows, batch_tokens: int, budget: int) -> None:
        """
        Args:
            network: at its reference weights.
            windows: the evaluation text.
            batch_tokens: tokens in a micro-batch; at least one window.
            budget: bytes for kept states and logits together.
        """
        self.network, self.windows = network, windows
        rows = max(1, batch_tokens // windows.seq_len)
        self.batches = [ids.to(network.device) for ids in torch.split(windows.ids, rows)]
        text = network.config.get_text_config()
        vocabulary, hidden = text.vocab_size, text.hidden_size
        chunk = CHUNK_BYTES // (rows * vocabulary * 4)
        chunk = max(CHUNK_MULTIPLE, chunk - chunk % CHUNK_MULTIPLE)
        first, last = windows.first, windows.seq_len - 1
        self.chunks = [(a, min(a + chunk, last)) for a in range(first, last, chunk)]

        total = windows.tokens
        state_bytes = total * hidden * network.dtype.itemsize
        blocks = len(network.blocks)
        self.keep_every = 1
        # The last state is always kept; every k-th of the others.
        while (
            self.keep_every < blocks and (-(-blocks // self.keep_every) + 1) * state_bytes > budget
        ):
            self.keep_every *= 2
        left = budget - (-(-blocks // self.keep_every) + 1) * state_bytes
        self.keep_logits = total * vocabulary * 4 <= left
        self._states: dict[int, dict[int, Tensor]] = {}
        self._logits: dict[tuple[int, int], Tensor] = {}
        self._lse: dict[tuple[int, int], Tensor] = {}
        self._first: dict[tuple[int, int], Tensor] = {}
        self._nll: dict[int, Tensor] = {}

    def known(self, batch: int) -> bool:
        """Whether this micro-batch has been run."""
        return batch in self._nll

    @torch.no_grad()
    def run(self, batch: int) -> None:
        """Run one micro-batch and keep what the budget allows; nothing if it was run before."""
        if self.known(batch):
            return
        ids, blocks = self.batches[batch], len(self.network.blocks)
        states = self.network.states(ids)
        nll = torch.zeros(ids.shape[0], dtype=torch.float64)
        lses, logits, first = {}, {}, {}
        for chunk, (a, b) in enumerate(self.chunks):
            z = self.network.logits(ids, states[blocks], (a, b)).float()
            lse = torch.logsumexp(z, -1)
            target = z.gather(-1, ids[:, a + 1 : b + 1, None]).squeeze(-1)
            nll += (lse - target).double().sum(-1).cpu()
            lses[batch, chunk] = lse
            first[batch, chunk] = z.argmax(-1, keepdim=True)
            if self.keep_logits:
                # A slice of whole logits would keep all of them alive.
                whole = z.untyped_storage().nbytes() > z.numel() * z.element_size()
                logits[batch, chunk] = z.clone() if whole else z
        # All at once, so that a forward abandoned half way leaves nothing behind.
        self._lse.update(lses)
        self._first.update(first)
        self._logits.update(logits)
        self._states[batch] = {
            k: state
            for k, state in enumerate(states)
            if k == blocks or (k % self.keep_every == 0 and self.network.resumable)
        }
        self._nll[batch] = nll

    @torch.no_grad()
    def plain(self, batch: int) -> None:
        """The model's own forward on one micro-batch with whole logits, nothing kept."""
        self.network.model(input_ids=self.batches[batch], use_cache=False)

    def nll_sums(self) -> Tensor:
        """Summed NLL of each window, ``[windows]`` float64, once every micro-batch was run."""
        return torch.cat([self._nll[batch] for batch in range(len(self.batches))])

    @torch.no_grad()
    def measure(self, batch: int, start: int, weights: Mapping[str, Held]) -> Tally:
        """Compare the network holding ``weights`` with the reference on one micro-batch.

        Args:
            batch: index of the micro-batch, run before.
            start: first block that ``weights`` change: ``-1`` for the embedding, the number of
                blocks for the head.
            weights: layers' weights by name, oriented as `Network.weight` gives them.
        """
        network, ids, blocks = self.network, self.batches[batch], len(self.network.blocks)
        kept = self._states[batch]
        known = max((k for k in kept if k <= start), default=-1) if start >= 0 else -1
        with network.holding(weights):
            last = (
                kept[known] if known == blocks else network.final_state(ids, known, kept.get(known))
            )
        sums = [torch.zeros(ids.shape[0], dtype=torch.float64) for _ in range(3)]
        for chunk, (a, b) in enumerate(self.chunks):
            reference = self._logits.get((batch, chunk))
            if reference is None:
                reference = network.logits(ids, kept[blocks], (a, b)).float()
            with network.holding(weights):
                changed = network.logits(ids, last, (a, b)).float()
            # A few windows at a time: temporaries that fit a cache are not mapped anew each time.
            step = ids.shape[0]
            if network.device.type == "cpu":
                step = max(1, PIECE_BYTES // (4 * reference[0].numel()))
            for first in range(0, ids.shape[0], step):
                rows = slice(first, first + step)
                found = compare(
                    reference[rows],
                    self._lse[batch, chunk][rows],
                    changed[rows],
                    ids[rows, a + 1 : b + 1],
                    self._first[batch, chunk][rows],
                )
                for total, part in zip(sums, (found.dnll, found.kl, found.agree), strict=True):
                    total[rows] = total[rows] + part.cpu()
        return Tally(*sums)
