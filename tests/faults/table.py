"""The table of `tests/bench/RESULTS.md` that says what the engine survived, and how often.

Every long test puts its own cell: `make soak` fills the table.
"""

from __future__ import annotations

import fcntl
from datetime import date
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "bench" / "RESULTS.md"
HEAD = "| what goes wrong | `make test` | `make soak` | on |"


def put(row: str, found: str, page: Path = PAGE, *, short: bool = False) -> None:
    """Write what a long test found into its row.

    Args:
        row: the beginning of the row's first cell.
        found: what there is to say in the third.
        page: the document.
        short: whether it is said in the second, of the short test.

    Raises:
        LookupError: no row begins so.
    """
    with page.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # long tests may run side by side
        head, marker, table = file.read().partition(HEAD)
        lines = table.split("\n")
        for at, line in enumerate(lines):
            if not line.startswith("|") and at > 1:
                raise LookupError(f"{page} has no row {row!r}")
            if line.startswith(f"| {row}"):
                first, second, third, on = line.strip("| ").split(" | ")
                if short:
                    second = found
                else:
                    third, on = found, date.today().isoformat()
                lines[at] = f"| {first} | {second} | {third} | {on} |"
                break
        file.seek(0)
        file.truncate()
        file.write(head + marker + "\n".join(lines))
