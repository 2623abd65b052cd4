"""The actions of the screen of calibration sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from engine.session import running
from qtui.screens.moving import paging, stepping
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.calibration.screen import Calibration


class CalibrationActions(SharedActions):
    """Runs the actions of the screen of calibration sets, and those of every screen."""

    def __init__(self, screen: Calibration, events: EventLog) -> None:
        super().__init__(screen, events)
        self.sets = screen

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("calibration"),
        "calibration.left": lambda do: do.sets.move_text(-1),
        "calibration.right": lambda do: do.sets.move_text(1),
        **paging("calibration"),
        "calibration.add": lambda do: do.sets.ask_sets(do.ask),
        "calibration.more": lambda do: do.more(),
        "calibration.pane_down": lambda do: do.sets.scroll_pane(1),
        "calibration.pane_up": lambda do: do.sets.scroll_pane(-1),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id in ("calibration.add", "calibration.more") and (why := self.no_model()):
            return why
        if id == "calibration.more":
            if self.sets.row is None:
                return f"no set yet: {self.sets.key('calibration.add')} names some"
            if any(isinstance(job.command, p.Calibrate) for job in running(self.session)):
                return "sets are being compared"
        return super().why_not(id)

    def more(self) -> None:
        """Compare the set under the cursor with twice as many samples as it has at most."""
        row = self.sets.row
        assert row is not None
        most = max(
            each.samples
            for each in self.sets.rows
            if (each.set, each.seq_len) == (row.set, row.seq_len)
        )
        asked = row.set if not row.set.startswith("eval:") else "eval"
        known = [
            job.command
            for job in self.session.jobs.values()
            if isinstance(job.command, p.Calibrate) and asked in job.command.sets
        ]
        texts = known[-1].texts if known else ()
        self.ask(
            p.Calibrate(
                sets=(asked,),
                method=self.sets.method,
                samples=(2 * most,),
                seq_lens=(row.seq_len,),
                texts=texts,
            )
        )
        self.say("info", f"{2 * most} samples: {self.sets.key('jobs')} shows the job")
