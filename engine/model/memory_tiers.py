"""Memory tiers for cached tensors, within a budget: the device, host memory, disk."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import platformdirs
import psutil
import torch
from torch import Tensor

from engine.errors import EngineError
from engine.model.memory import memory_free, size_of

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Room:
    """A budget of bytes of one kind of memory, and how many are used."""

    limit: int
    used: int = 0
    peak: int = 0

    @property
    def left(self) -> int:
        """Bytes that may still be used."""
        return max(0, self.limit - self.used)

    def take(self, size: int, *, always: bool = False) -> bool:
        """Use ``size`` bytes if they are left; with ``always`` also if they are not."""
        if not always and size > self.left:
            return False
        self.used += size
        self.peak = max(self.peak, self.used)
        return True

    def give(self, size: int) -> None:
        """Release ``size`` bytes."""
        self.used -= size


class KeptTensor(Protocol):
    """A tensor in some tier; its bytes are released when nothing refers to it."""

    def read(self) -> Tensor:
        """The tensor on its device; not to be written to."""


class MemoryTier(Protocol):
    """A place for cached tensors."""

    name: str
    room: Room

    def put(self, tensor: Tensor) -> KeptTensor | None:
        """Store a tensor; None if there is no room."""

    def seconds(self, sample: Tensor) -> float:
        """Measured time to read such a tensor; infinite if it cannot be stored."""


class _Held:
    """A tensor in memory, on its own device or beside it."""

    def __init__(self, tensor: Tensor, room: Room, device: torch.device) -> None:
        self._tensor, self._device = tensor, device
        weakref.finalize(self, room.give, tensor.nbytes).atexit = False

    def read(self) -> Tensor:
        return self._tensor.to(self._device, non_blocking=True)


class DeviceTier:
    """The memory that the network computes in."""

    name = "memory"

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device, self.room = device, Room(limit)

    def put(self, tensor: Tensor) -> KeptTensor | None:
        """Keep the tensor itself, a copy where it is a part of a larger one."""
        if not self.room.take(tensor.nbytes):
            return None
        whole = tensor.untyped_storage().nbytes() > tensor.nbytes
        return _Held(tensor.clone() if whole else tensor, self.room, self.device)

    def seconds(self, sample: Tensor) -> float:
        """Nothing is read."""
        return 0.0


class HostTier:
    """Pinned memory beside a CUDA device.

    Copies run in the stream that computes, so they are in order with what made the state and with
    what reads it; the allocator of pinned memory waits for them before it gives a piece away.
    """

    name = "host memory"

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device, self.room = device, Room(limit)

    def put(self, tensor: Tensor) -> KeptTensor | None:
        """Keep a pinned copy."""
        if not self.room.take(tensor.nbytes):
            return None
        try:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError as error:  # the system limits what may be pinned
            log.warning("no more memory can be pinned: %s", error)
            self.room.give(tensor.nbytes)
            self.room.limit = self.room.used
            return None
        return _Held(pinned.copy_(tensor, non_blocking=True), self.room, self.device)

    def seconds(self, sample: Tensor) -> float:
        """By one state there and back."""
        stored = self.put(sample)
        if stored is None:
            return float("inf")
        torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        stored.read()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun


class DiskTier:
    """An anonymous file: no other process can open it, and it disappears with this one.

    It is read and written by calls, not mapped: pages of a mapping count as resident memory, which
    the budget is there to limit.
    """

    name = "disk"

    def __init__(self, device: torch.device, limit: int, folder: Path) -> None:
        self.device, self.room, self.folder = device, Room(limit), folder
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}

    def put(self, tensor: Tensor) -> KeptTensor | None:
        """Write the tensor; None too where writing fails, and from then on."""
        size = tensor.nbytes
        if not self.room.take(size):
            return None
        free = self._free.setdefault(size, [])
        at = free.pop() if free else self._end
        try:
            _write(self._opened(), tensor, at)
        except OSError as error:
            log.warning("states cannot be written to %s: %s", self.folder, error)
            self.room.give(size)
            self.room.limit = 0
            return None
        self._end = max(self._end, at + size)
        return _Written(self, at, tensor)

    def seconds(self, sample: Tensor) -> float:
        """By one state there and back, the system's own cache emptied of it where that is known."""
        stored = self.put(sample)
        if stored is None:
            return float("inf")
        os.fsync(self._opened())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._opened(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        stored.read()
        return time.perf_counter() - begun

    def read_at(self, at: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """What was written at ``at``.

        Raises:
            EngineError: the disk fails.
        """
        tensor = torch.empty(shape, dtype=dtype)
        left = tensor.view(torch.uint8).numpy().data.cast("B")
        why = "it ends too soon"
        while left:
            try:
                done = os.preadv(self._opened(), [left], at)
            except OSError as error:
                done, why = 0, str(error)
            if not done:
                raise EngineError(
                    f"{self.folder}: states written there cannot be read back ({why}): "
                    "give a larger --memory-budget, or name another folder in TMPDIR"
                )
            left, at = left[done:], at + done
        return tensor.to(self.device)

    def give(self, at: int, size: int) -> None:
        """Release what was written at ``at``."""
        self.room.give(size)
        self._free[size].append(at)

    def _opened(self) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        return self._file.fileno()


class _Written:
    def __init__(self, disk: DiskTier, at: int, tensor: Tensor) -> None:
        self._disk, self._at, self._shape, self._dtype = disk, at, tensor.shape, tensor.dtype
        weakref.finalize(self, disk.give, at, tensor.nbytes).atexit = False

    def read(self) -> Tensor:
        return self._disk.read_at(self._at, self._shape, self._dtype)


def _write(file: int, tensor: Tensor, at: int) -> None:
    left = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


class TieredMemory:
    """The tiers for one network's states, shared by all caches.

    Args:
        device: the network's.
        budget: bytes on the device.
        beyond: tiers for states that do not fit there, the fastest first; None uses pinned host
            memory of a CUDA device, half of what is free, then half of a disk's free space.
    """

    def __init__(
        self, device: torch.device, budget: int, beyond: Iterable[MemoryTier] | None = None
    ) -> None:
        self.device = DeviceTier(device, budget)
        self._found, self._all = beyond is None and hasattr(os, "preadv"), False
        self._tiers = list(_beyond(device) if beyond is None else beyond)
        self.beyond: list[MemoryTier] | None = None
        """The tiers that are worth using; None until measured."""
        self.reading = 0.0
        """Time to read a state from the first of them, as a share of a block."""

    @property
    def room(self) -> Room:
        """The room on the device, which the budget limits."""
        return self.device.room

    def weigh(self, sample: Tensor, block_seconds: float) -> None:
        """Find, once, the tiers from which reading a state is faster than running a block.

        Args:
            sample: a state.
            block_seconds: what running one block on it takes.
        """
        if self.beyond is not None:
            return
        taken = [(tier.seconds(sample), tier) for tier in self._tiers]
        self.beyond = [tier for seconds, tier in taken if seconds < block_seconds]
        if self.beyond:
            self.reading = taken[self._tiers.index(self.beyond[0])][0] / block_seconds
        for seconds, tier in taken:
            log.info(
                "a state is read from %s in %.4f s, a block runs in %.4f s",
                tier.name,
                seconds,
                block_seconds,
            )

    def use_all(self) -> None:
        """Use every tier, however slow, and at worst a folder in memory: states are dear to make
        again."""
        if self._all:
            return
        self._all, self.beyond = True, self._tiers
        if self._found and not any(isinstance(tier, DiskTier) for tier in self._tiers):
            folder = Path(tempfile.gettempdir())
            free = psutil.disk_usage(str(folder)).free // 2
            self.beyond = [*self._tiers, DiskTier(self.device.device, free, folder)]

    def put(self, state: Tensor, *, on_device: bool = True) -> KeptTensor | None:
        """Store a state; None if there is no room.

        Args:
            state: any tensor of the network's device; not to be written to afterwards.
            on_device: False tries only the other tiers.
        """
        stored = self.device.put(state) if on_device else None
        for tier in self.beyond or ():
            stored = stored or tier.put(state)
        return stored

    def must_put(self, state: Tensor) -> KeptTensor:
        """Store a state that would cost reading blocks again.

        Raises:
            EngineError: there is no room.
        """
        kept = self.put(state)
        if kept is None:
            tiers: list[MemoryTier] = [self.device, *(self.beyond or ())]
            left = ", ".join(f"{size_of(tier.room.left)} of {tier.name}" for tier in tiers)
            raise EngineError(
                f"no room for the states between streamed blocks ({size_of(state.nbytes)} each): "
                f"{left} left; free disk space, name another folder in TMPDIR, give a larger "
                "--memory-budget or fewer --tokens; what was measured is saved"
            )
        return kept


def _beyond(device: torch.device) -> Iterable[MemoryTier]:
    if device.type == "cuda":
        yield HostTier(device, memory_free("cpu") // 2)
    if hasattr(os, "preadv"):
        for folder in (Path(tempfile.gettempdir()), Path(platformdirs.user_cache_dir("qtui"))):
            if folder.is_dir() and not _is_memory(folder):
                yield DiskTier(device, psutil.disk_usage(str(folder)).free // 2, folder)
                return


def _is_memory(folder: Path) -> bool:
    """Whether a folder is in memory itself."""
    folder = folder.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.is_relative_to(m.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype in ("tmpfs", "ramfs")
