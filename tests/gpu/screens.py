"""The interface itself, in a pseudo-terminal for a minute: its screens are kept in a file."""

from __future__ import annotations

import re
import time

from tests.gpu.rows import Recorder
from tests.gpu.speed import checkpoint
from tests.gpu.steps import Options

KEYS = ("", "j", "j", "4", "", "\t", "s", "", "?", "\x1b", "m", "", "j", "3", "")
"""One every few seconds: movements, toggles, the side pane, a sweep, help."""
PPL = re.compile(r"PPL\s+([\d.,]+)")


def run(options: Options, figures: Recorder) -> None:
    """Keeps screens, and compares the perplexity that they show with the engine's own."""
    from engine.measure.evaluation.evaluate import baseline
    from tests.gpu.models import counts, ended, opened, prose, tiny_checkpoint
    from tests.terminal import home, qtui

    source = tiny_checkpoint(options, "llama") if options.tiny else checkpoint(options)
    text = str(prose(options.folder))
    tokens, seq_len = (512, 32) if options.tiny else (8192, 2048)
    dtype = "fp32" if options.tiny else "bf16"
    patience = 250.0 if options.tiny else 100.0
    seconds = 4.0 if options.tiny else 60.0
    screens: list[str] = []
    shown = ""
    began = time.perf_counter()
    with home(tokens=tokens, seq_len=seq_len, draws=1, calib_tokens=1024, nice=0) as where, qtui(
        where, str(source), "--device", options.device, "--dtype", dtype, "--text", text,
        size=(160, 48),
    ) as terminal:  # fmt: skip
        terminal.until(lambda screen: any("layer" in line for line in screen), 60, "the table")
        figures.tell("table of layers", time.perf_counter() - began, "s")
        terminal.until(
            lambda screen: any(PPL.search(line) for line in screen),
            patience,
            "perplexity",
        )
        figures.tell("perplexity", time.perf_counter() - began, "s")
        shown = next(found[1] for line in terminal.screen if (found := PPL.search(line)))
        pause = seconds / len(KEYS)
        for key in KEYS:
            if key:
                terminal.press(key)
            deadline = time.monotonic() + pause
            while (left := deadline - time.monotonic()) > 0:
                terminal.read(min(left, 0.2))
            screens.append("\n".join(line.rstrip() for line in terminal.screen))
            _keep(options, screens)
        figures.most("the interface has ended", float(terminal.process.poll() is not None), 0)
        terminal.press("Q")
    loaded = opened(
        options, source, options.device, dtype, tokens=tokens, seq_len=seq_len, batch_tokens=2048
    )
    expected = ended(baseline(loaded, counts())).ppl
    figures.same("perplexity on the screen", float(shown.replace(",", "")), expected, 6e-3)


def _keep(options: Options, screens: list[str]) -> None:
    path = options.out / "screens.txt"
    rule = "\n" + "=" * 160 + "\n"
    path.write_text(rule.join(screens), encoding="utf-8")
