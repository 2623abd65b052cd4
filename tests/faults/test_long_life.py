"""Much was measured, the engine runs for long: quick to attach to, memory flat, nothing lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from engine import protocol as p
from engine.client import SocketLink, connect
from engine.service.server import Server
from engine.session import Session, apply
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.paths import facts_file, session_folder, session_name, socket_file
from engine.store.recorder import Recorder
from tests import terminal as t
from tests.faults.table import put

RESULTS = 100_000
FORMATS = tuple(f"int{bits}-g{group}" for bits in range(2, 9) for group in (16, 32, 64, 128, 256))
HOURS, A_SECOND = 8, 1000
JOURNALLED = 100
"""One event in so many is journalled; the others pass."""
MB = 1 << 20


def sensitivity(layer: str, format: str, kl: float) -> p.Sensitivity:
    return p.Sensitivity(
        layer=layer, format=format, kl=kl, kl_se=kl / 9, dnll=kl, dnll_se=kl / 9, dppl=kl,
        dppl_low=0.0, dppl_high=2 * kl, tokens=4096,
    )  # fmt: skip


def names(count: int) -> list[str]:
    return [f"model.layers.{at // 7}.mlp.experts.{at % 7}.down_proj" for at in range(count)]


def listed(layers: list[str]) -> p.LayersListed:
    n = len(layers)
    return p.LayersListed(
        names=layers, kinds=["down_proj"] * n, blocks=[at // 7 for at in range(n)],
        roles=["linear"] * n, shapes=[(512, 512)] * n, dtypes=["bfloat16"] * n, other_bytes=0,
    )  # fmt: skip


def recorder(name: str, announce: Callable[[int, p.AnyEvent], None]) -> tuple[Recorder, FactStore]:
    facts = FactStore(facts_file())
    journal = Journal(session_folder(name), facts)
    return Recorder(journal, facts, announce, threading.RLock()), facts


def write_results(source: Path, count: int) -> None:
    """A session in which so many effects were measured, each announced by itself."""
    layers = names(count // len(FORMATS))
    kept, facts = recorder(session_name(str(source)), lambda seq, event: None)
    kept.emit(p.Opened(str(source), p.Settings(), {}))
    checkpoint = p.CheckpointRead(
        name="large-demo", path=str(source), architecture="LlamaForCausalLM", parameters=10**9,
        bytes=2 * 10**9, dtype="bfloat16", fingerprint="f",
    )  # fmt: skip
    kept.emit(checkpoint)
    kept.emit(listed(layers))
    for format in FORMATS:
        found = [sensitivity(layer, format, 1e-3 * (at + 1)) for at, layer in enumerate(layers)]
        keys = [f"{format} {layer}" for layer in layers]
        facts.put(keys, found)
        for key, fact in zip(keys, found, strict=True):
            kept.emit(p.Learned((key,), (fact,), fresh=False))
    kept.close()
    facts.close()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[t.Home]:
    with t.home() as made:
        for name, value in made.environment.items():
            if name.startswith("XDG_"):
                monkeypatch.setenv(name, value)
        yield made


def attached(home: t.Home, source: Path, count: int) -> tuple[float, float]:
    """Seconds from the command to the whole picture of so many results, and the memory it takes."""
    write_results(source, count)
    name = session_name(str(source))
    command = [sys.executable, "-m", "engine", name, "--idle", "10"]
    with subprocess.Popen(command, env=home.environment, stderr=subprocess.DEVNULL) as engine:
        try:
            t.wait_for(socket_file(name).exists, "the engine listens")
            asyncio.run(_answers(name))
            best, memory = float("inf"), 0.0
            for _ in range(3):
                before = time.monotonic()
                with t.qtui(home, "attach", "--read-only") as terminal:
                    terminal.until(lambda s: t.whole(s) and t.sensitivity(s), what="the results")
                    best = min(best, time.monotonic() - before)
                    terminal.press(t.END, t.HOME)
                    terminal.read(1.0)
                    process = psutil.Process(terminal.process.pid)
                    memory = max(memory, process.memory_info().rss / MB)
            return best, memory
        finally:
            engine.terminate()


async def _answers(name: str) -> None:
    link = await connect(name)
    assert link is not None
    await link.receive()
    await link.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_results(home: t.Home, tmp_path: Path) -> None:
    seconds, memory = attached(home, tmp_path, RESULTS)
    load = f"{os.cpu_count()} cores at load {os.getloadavg()[0]:.0f}"
    put("100,000 results", f"{seconds:.2f} s ({load}), {memory:.0f} MB")
    assert memory < 300


class Hours:
    """An engine that measures without a pause, and a client that follows it."""

    def __init__(self) -> None:
        self.server = Server(socket_file("hours"), "hours")
        self.recorder, self.facts = recorder("hours", self.server.announce)
        self.layers = names(200)
        self.seen = self.passed = self.missed = 0
        self.session = Session()

    def handle(self, command: p.AnyCommand, reply: object) -> None:
        raise AssertionError(command)

    def snapshot(self) -> tuple[int, bytes]:
        return self.recorder.snapshot()

    def busy(self) -> bool:
        return True

    async def run(self, events: int) -> tuple[float, float]:
        """Memory after an eighth of the events, and after all, in MB."""
        self.recorder.emit(listed(self.layers))
        serving = asyncio.create_task(self.server.run(lambda: self, 3600))
        while (link := await connect("hours")) is None:
            await asyncio.sleep(0)
        following = asyncio.create_task(self.follow(link))
        process, early = psutil.Process(os.getpid()), 0.0
        for number in range(1, events + 1):
            self.emit(number)
            if number % JOURNALLED == 0:
                await asyncio.sleep(0)
                while self.recorder.session.seq - self.seen > 100:  # it is not that quick in truth
                    await asyncio.sleep(0)
            if number == events // HOURS:
                early = process.memory_info().rss / MB
        async with asyncio.timeout(60):
            while self.seen < self.recorder.session.seq:
                await asyncio.sleep(0.01)
        late = process.memory_info().rss / MB
        here, there = self.session.effects, self.recorder.session.effects
        assert p.encode([*here.measured.values()]) == p.encode([*there.measured.values()])
        following.cancel()
        await link.close()
        self.server.stop()
        await serving
        return early, late

    def emit(self, number: int) -> None:
        if number % JOURNALLED:
            progress = p.Progress(job="sweep-1", done=number, total=number + 1)
            self.recorder.emit(progress)
            return
        at = number // JOURNALLED
        layer, format = self.layers[at % len(self.layers)], FORMATS[at // 200 % 4]
        fact = sensitivity(layer, format, 1.0 + at % 17)
        # Measured again and again: what is known does not grow.
        self.facts.put([f"{layer} {format}"], [fact], replace=True)
        self.recorder.emit(p.Learned((f"{layer} {format}",), (fact,), fresh=False))

    async def follow(self, link: SocketLink) -> None:
        while True:
            received = await link.receive()
            if isinstance(received, Session):
                self.session, self.seen = received, received.seq
                continue
            apply(self.session, received.event, received.seq)
            self.passed += 1
            if received.seq:
                self.missed += received.seq - self.seen - 1
                self.seen = received.seq


def hours_pass(events: int) -> tuple[float, float, int]:
    """Memory early and late, in MB, and events that were missed."""
    hours = Hours()
    with closing(hours.facts), closing(hours.recorder):
        early, late = asyncio.run(hours.run(events))
    assert hours.seen == 1 + events // JOURNALLED
    assert hours.passed > hours.seen
    return early, late, hours.missed


def test_a_minute_of_a_thousand_events_a_second() -> None:
    *_, missed = hours_pass(60 * A_SECOND // 4)
    assert missed == 0


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_eight_hours_of_a_thousand_events_a_second() -> None:
    early, late, missed = hours_pass(HOURS * 3600 * A_SECOND)
    put("8 hours", f"{early:.0f} MB, {late:.0f} MB, {missed}")
    assert missed == 0
    assert late - early < 16
