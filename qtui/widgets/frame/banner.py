"""The banner shown when the engine has ended."""

from __future__ import annotations

from qtui.views.text import printable
from qtui.widgets.line import Lines, Words

LOG_LINES = 5


class Banner(Lines):
    """Why the engine ended, its last words, where its log is, and what to press."""

    DEFAULT_CSS = """
    Banner {
        display: none;
        height: auto;
        max-height: 10;
        padding: 0 1;
        border-left: outer $error;
        background: $surface;
    }
    Banner.-shown { display: block; }
    """

    def show(self, message: str, log_path: str, retry: str = "r", leave: str = "q") -> None:
        """Say that the engine is gone.

        Args:
            message: its first line is the cause, the rest its log.
            log_path: where its log is.
            retry: the key that starts another one.
            leave: the key that quits.
        """
        cause, *log = [line.rstrip() for line in message.splitlines() if line.strip()] or ["?"]
        if log_path and (cut := cause.find(log_path)) > 0:
            # Where the log is has a line of its own.
            cause = cause[:cut].rpartition(";")[0] or cause
        if cause.startswith("the engine"):
            lines: list[Words] = [[("T" + printable(cause[1:]) + ".", "bold $error")]]
        else:
            lines = [[("The engine ended: ", "bold $error"), (printable(cause), "bold")]]
        lines += [[("  " + printable(line), "$dim")] for line in log[-LOG_LINES:]]
        if log_path:
            lines.append([("Log: ", ""), (printable(log_path), "$primary")])
        lines.append(
            [(retry, "bold $primary"), (" restarts it and resumes; ", ""),
             (leave, "bold $primary"), (" quits. Results are saved.", "")]
        )  # fmt: skip
        self.set_lines(lines)
        self.add_class("-shown")
        self.refresh(layout=True)

    def hide(self) -> None:
        """There is an engine again."""
        self.remove_class("-shown")
