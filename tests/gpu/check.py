"""Everything there is to check on a GPU, in one run: ``python -m tests.gpu.check``.

Steps run in order of worth, each in a process of its own and under a time limit. Every figure is
printed when it is found; the last thing printed is a table of all, also written to ``--out``. The
exit status is 1 if a figure is not what it must be, or a step did not end well.

On a machine that has little beside torch and transformers, ``--wheels`` names a folder of wheels
(`tests.gpu.wheels`) of which those that are missing are unpacked and used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.gpu.rows import Row, table
from tests.gpu.steps import STEPS, Options
from tests.gpu.wheels import unpack


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status."""
    given = _parsed(arguments)
    wanted = [step for step in STEPS if not given.steps or step.name in given.steps]
    folder = Path(tempfile.mkdtemp(prefix="g", dir=given.folder))
    out = Path(given.out or folder)
    out.mkdir(parents=True, exist_ok=True)
    options = Options(given.device, given.tiny, folder, out)
    try:
        if given.wheels:
            _say(f"unpacked {', '.join(unpack(Path(given.wheels), folder / 'site')) or 'nothing'}")
        # An engine is a process of its own that does not look into the working directory.
        root = str(Path(__file__).parents[2])
        already = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, already]))
        from engine.service.process import leave_room

        if given.tiny:  # several threads wait for each other longer than they compute
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
        leave_room()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tests.gpu import running

        if given.device == "cpu":
            running.preload()
        rows: list[Row] = []
        failures: dict[str, str] = {}
        took: dict[str, float] = {}

        def take(row: Row) -> None:
            rows.append(row)
            _say(row.line)

        for step in wanted:
            _say(f"--- {step.name}: {step.about}")
            begun = time.monotonic()
            if why := running.run_step(step, options, take):
                failures[step.name] = why
                _say(f"FAIL {step.name}: {why}")
            took[step.name] = time.monotonic() - begun
            _keep(out, given, rows, failures, took)
        report = _keep(out, given, rows, failures, took)
        _say(report)
        wrong = [row for row in rows if not row.ok]
        failed = f"{len(failures)} of {len(wanted)} steps failed"
        _say(f"{len(rows)} figures, {len(wrong)} wrong, {failed}")
        return 1 if wrong or failures else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="small enough for a processor")
    parser.add_argument("--out", default=os.environ.get("OUT", ""), help="folder of the results")
    parser.add_argument("--folder", default=None, help="where checkpoints are built; removed again")
    parser.add_argument("--wheels", default="", help="folder of wheels to unpack if missing")
    parser.add_argument(
        "--steps", default="", type=lambda text: tuple(filter(None, text.split(","))),
        help=f"some of {', '.join(step.name for step in STEPS)}",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if unknown := set(given.steps) - {step.name for step in STEPS}:
        parser.error(f"there is no step {', '.join(sorted(unknown))}")
    return given


def _keep(
    out: Path,
    given: argparse.Namespace,
    rows: list[Row],
    failures: dict[str, str],
    took: dict[str, float],
) -> str:
    """Write what is known so far; returns the report."""
    machine = [row.note for row in rows if row.step == "versions" and row.note]
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    scale = ", `--tiny`" if given.tiny else ""
    lines = [f"## On {given.device}{scale}", "", f"{date}; {'; '.join(machine)}.", ""]
    lines.append("Steps: " + ", ".join(f"{name} {s:.0f} s" for name, s in took.items()) + ".")
    lines += [f"\n**{name} failed: {why}**" for name, why in failures.items()]
    report = "\n".join(lines) + "\n\n" + table(r for r in rows if r.step != "versions") + "\n"
    (out / "gpu.md").write_text(report, encoding="utf-8")
    found = {"rows": [asdict(row) for row in rows], "failures": failures, "seconds": took}
    (out / "gpu.json").write_text(json.dumps(found), encoding="utf-8")
    return report


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
