"""Files that stand for others: symbolic links, and pointers of Git LFS."""

from __future__ import annotations

from pathlib import Path

from engine.errors import CheckpointError

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_link(folder: Path, file: Path, *, follow: bool = False) -> None:
    """Refuse a link that leads out of the folder of a checkpoint.

    A folder of the hub's cache may link into the files that the cache holds for its model, wherever
    their folder ``blobs`` lies.

    Args:
        folder: of the checkpoint.
        file: inside of it.
        follow: whether links may lead anywhere.

    Raises:
        CheckpointError: the link leads out of it.
    """
    if follow:
        return
    real, homes = file.resolve(), [folder.resolve()]
    store = homes[0].parent.parent
    if homes[0].parent.name == "snapshots" and store.name.startswith("models--"):
        homes = [store, (store / "blobs").resolve()]
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{file} links to {real}, outside the checkpoint's folder; if you trust it, allow such "
            "links with --follow-links, or put the file itself there"
        )


def refuse_pointer(file: Path, head: bytes) -> None:
    """Refuse a file that is a pointer of Git LFS to the real one.

    Args:
        file: for the message.
        head: its first bytes.

    Raises:
        CheckpointError: it is one.
    """
    if head.startswith(_POINTER[: max(8, len(head))]):
        raise CheckpointError(
            f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` in "
            f"{file.parent}, or download the checkpoint again"
        )
