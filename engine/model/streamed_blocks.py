"""Blocks whose weights are read from the checkpoint when they run, and dropped afterwards.

Two are in memory: the one that runs, and the next one, which a thread reads meanwhile. On a GPU it
copies it there from pinned memory, in a stream of its own. Embedding and head may be read like
blocks, before the first and after the last: each is in memory alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread

import torch
from torch import Tensor, nn

from engine.model.block_reader import BlockReader
from engine.model.freed_memory import give_back

Values = dict[str, Tensor]


class StreamedBlocks:
    """A `BlockSource` that reads.

    Without its values a parameter keeps its shape, over one number that is not a number: whatever
    is computed with it by mistake shows.

    Args:
        modules: the blocks; their parameters are on the device, and may have no values.
        keys: of every block, the keys of its parameters in the model, in the order of
            ``parameters()``.
        reader: of the model.
        around: weights of the embedding (-1) and of the head (the number of blocks), if they are
            read too, by the key that each is read by.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        keys: Sequence[Sequence[str]],
        reader: BlockReader,
        around: Mapping[int, tuple[str, nn.Parameter]] | None = None,
    ) -> None:
        self.modules, self.at_once, self.reader = modules, 1, reader
        self.outside = bool(around)
        self.reads_around = 0
        """How often embedding or head were read."""
        self.reads = [0] * len(modules)
        """How often each block was read."""
        self.waited = 0.0
        """Seconds that whoever needed a block waited for it."""
        self.spent = 0.0
        """Seconds that reading took."""
        self._own = {
            k: dict(zip(of_block, module.parameters(), strict=True))
            for k, (of_block, module) in enumerate(zip(keys, modules, strict=True))
        }
        self._own |= {k: {key: own} for k, (key, own) in (around or {}).items()}
        self._keys = {id(p): (k, key) for k, own in self._own.items() for key, p in own.items()}
        self._open = dict.fromkeys(self._own, 0)
        self._ahead: _Ahead | None = None
        self._last = -1

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def pace(self) -> float:
        """Seconds that reading a block takes, as far as they were read; 0 if none was."""
        return self.spent / max(1, sum(self.reads) + self.reads_around)

    @property
    def largest(self) -> int:
        """Bytes of the largest block."""
        return max(sum(map(_bytes, self._own[k].values())) for k in range(len(self)))

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(_bytes(p) for k in range(len(self)) for p in self._own[k].values())

    @property
    def around(self) -> list[nn.Parameter]:
        """The weights of embedding and head, if they are read too."""
        blocks = range(len(self))
        return [p for k, own in self._own.items() if k not in blocks for p in own.values()]

    def keep_around(self) -> None:
        """Read embedding and head now, and keep them: a model uses them in some way of its own."""
        for k in (-1, len(self)):
            for key, parameter in self._own.pop(k, {}).items():
                parameter.data = self.reader.read([key])[key].to(parameter.device)
                del self._keys[id(parameter)]
        self.outside = False

    @contextmanager
    def block(self, k: int) -> Iterator[nn.Module | None]:
        """The block, read unless it is open already.

        Raises:
            CheckpointError: it cannot be read, or its file changed.
        """
        if k not in self._own:  # what is around the blocks, and kept
            yield None
            return
        if not self._open[k]:
            self._fill(k)
        self._open[k] += 1
        try:
            yield self.modules[k] if 0 <= k < len(self) else None
        finally:
            self._open[k] -= 1
            if not self._open[k]:
                for parameter in self._own[k].values():
                    parameter.data = without_values(parameter)
                give_back()

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The parameter itself while its block is open; else it is read."""
        region, key = self._keys.get(id(parameter), (k, None))
        if key is None or self._open[region]:
            return parameter
        return self.reader.read([key])[key].to(parameter.device)

    def _fill(self, k: int) -> None:
        begun = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.k != k:
            ahead = self._read(k)
        values = ahead.values()
        self.waited += time.perf_counter() - begun
        self.spent += ahead.spent
        for key, parameter in self._own[k].items():
            parameter.data = values[key]
        if not 0 <= k < len(self):
            self.reads_around += 1
            return  # it is in memory alone
        self.reads[k] += 1
        following = k + self._direction(k)
        self._last = k
        if 0 <= following < len(self) and not self._open[following]:
            self._ahead = self._read(following)

    def _direction(self, k: int) -> int:
        """Which way the pass goes that needs this block after the last one."""
        if abs(k - self._last) == 1:
            return k - self._last
        return -1 if k + 1 == len(self) else 1  # a new pass

    def _read(self, k: int) -> _Ahead:
        own = self._own[k]
        device = next(iter(own.values())).device
        return _Ahead(k, device, lambda: self.reader.read(own))


class _Ahead:
    """A block that a thread reads."""

    def __init__(self, k: int, device: torch.device, read: Callable[[], Values]) -> None:
        self.k, self.spent = k, 0.0
        self._device, self._read = device, read
        self._values: Values = {}
        self._copied: torch.cuda.Event | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name=f"block {k}", daemon=True)
        self._thread.start()

    def values(self) -> Values:
        """The values on the device, once they are there."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._copied)
            for value in self._values.values():
                value.record_stream(stream)
        return self._values

    def _run(self) -> None:
        begun = time.perf_counter()
        try:
            values = self._read()
            self._values = self._on_gpu(values) if self._device.type == "cuda" else values
        except BaseException as error:  # noqa: BLE001  (raised where the block is needed)
            self._error = error
        self.spent = time.perf_counter() - begun

    def _on_gpu(self, values: Values) -> Values:
        with torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
            pinned = {key: value.pin_memory() for key, value in values.items()}
            found = {key: v.to(self._device, non_blocking=True) for key, v in pinned.items()}
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._copied.synchronize()  # what is pinned is freed now
        return found


def without_values(like: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device that takes no memory; NaN where it can be."""
    fill = float("nan") if like.is_floating_point() else 0
    device = "cpu" if like.is_meta else like.device
    return torch.full((1,), fill, dtype=like.dtype, device=device).expand(like.shape)


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
