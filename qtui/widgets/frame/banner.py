"""The banner shown while there is no engine."""

from __future__ import annotations

from engine.client import EngineGoneError
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

    def show(self, error: EngineGoneError, retry: str = "r", leave: str = "q") -> None:
        """Say that the engine is gone.

        Args:
            error: why, with the end of its log.
            retry: the key that starts another one.
            leave: the key that quits.
        """
        reason = printable(error.reason)
        lines: list[Words] = [[(reason[:1].upper() + reason[1:] + ".", "bold $error")]]
        log = [line.rstrip() for line in error.log if line.strip()]
        lines += [[("  " + printable(line), "$dim")] for line in log[-LOG_LINES:]]
        if error.log_path:
            lines.append([("Log: ", ""), (printable(error.log_path), "$primary")])
        lines.append(
            [(retry, "bold $primary"), (f" {error.remedy}; ", ""),
             (leave, "bold $primary"), (" quits. Results are saved.", "")]
        )  # fmt: skip
        self._say(lines)

    def wait(self, sentence: str) -> None:
        """Say what is waited for before another engine can be started."""
        self._say([[(printable(sentence[:1].upper() + sentence[1:]) + ".", "$warning")]])

    def _say(self, lines: list[Words]) -> None:
        self.set_lines(lines)
        self.add_class("-shown")
        self.refresh(layout=True)

    def hide(self) -> None:
        """There is an engine again."""
        self.remove_class("-shown")
