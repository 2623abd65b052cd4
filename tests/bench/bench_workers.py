"""What workers gain, and what their queue costs.

``python -m tests.bench.bench_workers sweep [PROCESSES]`` sweeps a model of 24 blocks exactly, alone
and with workers, each process with one thread; the ratio is that of the time in which layers are
measured. ``python -m tests.bench.bench_workers queue`` has eight processes send facts at a given
pace, which an engine without a model records. ``python -m tests.bench.bench_workers ray`` does both
with nodes of a cluster of Ray on this machine, and counts what connects the engine to it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

from engine import protocol as p
from engine.workers import bridge
from engine.workers.channel import Channel
from engine.workers.cluster import Cluster
from engine.workers.crew import Crew
from engine.workers.hosted import Hosted
from engine.workers.local import LocalWorker
from engine.workers.serving import Outlet
from engine.workers.worker import Worker
from tests.workers.clusters import hosts, on_first_node

PACED = 8
PACE = 1000.0
"""Facts a second of all of them."""
UNITS = 8000


def sweep(*workers: str) -> None:
    """Compare exact sweeps by these workers."""
    from tests import tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.build(
            "llama", folder / "model", num_hidden_layers=24, hidden_size=256,
            intermediate_size=768, num_attention_heads=8, num_key_value_heads=4,
            max_position_embeddings=256,
        )  # fmt: skip
        (folder / "text.txt").write_text("the layers of a model are measured one by one. " * 4000)
        seconds, facts = zip(*(_swept(folder, each) for each in workers), strict=True)
    same = "equal to the last digit" if facts[0] == facts[1] else "NOT EQUAL"
    print(
        f"measuring: {seconds[0]:.1f} s with {workers[0]}, {seconds[1]:.1f} s with {workers[1]}: "
        f"{seconds[0] / seconds[1]:.2f} x; {len(facts[0])} figures, {same}"
    )


def _swept(folder: Path, workers: str) -> tuple[float, dict[str, p.AnyFact]]:
    """Seconds in which layers were measured, and the figures by key."""
    from engine.client import in_process

    os.environ["XDG_STATE_HOME"] = str(folder / f"state {workers[:3]}")
    chosen = p.Settings(
        text=str(folder / "text.txt"), tokens=4096, seq_len=256, batch_tokens=1024,
        sweep_formats=("int4-g128",), workers=workers, device="cpu",
    )  # fmt: skip
    client = in_process(str(folder / "model"))
    found: dict[str, p.AnyFact] = {}
    begun = ended = 0.0
    try:
        client.send(p.Open(str(folder / "model"), chosen))
        client.send(p.Sweep(exact="all"))
        while True:
            event = client.receive(600)
            match event:
                case p.Learned():
                    found.update(zip(event.keys, event.facts, strict=True))
                    if any(isinstance(fact, p.Sensitivity) for fact in event.facts):
                        ended = time.perf_counter()
                case p.Progress(phase="measuring") if not begun:
                    begun = time.perf_counter()
                case p.JobEnded(kind="sweep"):
                    assert event.status == "done", event.message
                    return ended - begun, found
                case None:
                    raise TimeoutError("no event for ten minutes")
    finally:
        client.close()


class Paced(LocalWorker):
    """A process that sends a fact every so often, and has no model."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, "cpu")
        self._seconds = seconds

    def _started(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        there = str(theirs.fileno())
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "paced", there, str(self._seconds)],
            pass_fds=(theirs.fileno(),),
        )


def paced(channel: Channel, seconds: float) -> None:
    """Be a worker that takes so long for a unit."""
    outlet, job = Outlet(channel.send), 0
    with suppress(EOFError, OSError):
        while True:
            command = channel.receive()
            assert isinstance(command, p.Command)
            job += 1
            for event in _answers(command, f"units-{job}", seconds):
                outlet.send(event)


def _answers(command: p.Command, job: str, seconds: float) -> Iterator[p.AnyEvent]:
    yield p.JobStarted(job=job, kind="units", title="", command=command, urgency=4)
    begun = time.perf_counter()
    some = command.units if isinstance(command, p.MeasureUnits) else ()
    for units, unit in enumerate(some, 1):
        time.sleep(max(0.0, begun + units * seconds - time.perf_counter()))
        yield p.Progress(job=job, done=1, total=1, phase="measuring", subject=unit)
        fact = p.Sensitivity(
            layer=unit, format="int8", direction="degrade", kl=0.1, kl_se=0.01, dnll=0.1,
            dnll_se=0.01, dppl=0.1, dppl_low=0.0, dppl_high=0.2, tokens=4096,
        )  # fmt: skip
        yield p.Learned((unit,), (fact,))
    yield p.JobEnded(job=job, kind="units", status="done")


class PacedHosted(Hosted):
    """An actor that sends a fact every so often, and has no model."""

    def _serve(self, channel: Channel) -> None:
        paced(channel, PACED / PACE)


class PacedCluster(Cluster):
    """A cluster of such actors."""

    _bridge = ("tests.bench.bench_workers", "bridge")


def ray() -> None:
    """Do both on one other node: a sweep of one thread each, and a queue of eight workers."""
    with hosts() as found:
        node = found.add()
        sweep("1", f"ray://{found.address}")
        found.remove(node)
        found.add(processors=PACED)
        with closing(PacedCluster(found.address)) as cluster:
            workers = [on_first_node(cluster, number) for number in range(PACED)]
            queue(PACE, workers, psutil.Process(cluster._process.pid))


def queue(
    facts_a_second: float, workers: Sequence[Worker], beside: psutil.Process | None = None
) -> None:
    """Measure what the queue leaves of eight workers' time, and takes of the engine's.

    Args:
        facts_a_second: of all workers.
        workers: eight, each of which sends its share.
        beside: a process that works for the engine only.
    """

    def used_beside() -> float:
        return sum(beside.cpu_times()[:2]) if beside else 0.0

    from engine.store.facts import FactStore
    from engine.store.journal import Journal
    from engine.store.recorder import Recorder

    def command(keys: Sequence[str]) -> p.MeasureUnits:
        return p.MeasureUnits(
            format="int8", direction="degrade", by="layer", units=tuple(keys), nll=1.0
        )

    seconds = PACED / facts_a_second
    with tempfile.TemporaryDirectory() as name:
        facts = FactStore(Path(name) / "facts.sqlite")
        journal = Journal(Path(name), facts)
        record = Recorder(journal, facts, lambda _seq, _event: None, threading.RLock())
        opening = p.Open("demo", p.Settings())
        crew = Crew(workers, opening, lambda _: "")
        while crew.starting:
            crew.wait(0.1)
        begun, used, other = time.perf_counter(), time.process_time(), used_beside()
        crew.begin({f"layer {n}": "" for n in range(UNITS)}, command, at_once=16)
        count = 0
        while crew and crew.left:
            time.sleep(0.1)
            keys: list[str] = []
            found: list[p.AnyFact] = []
            for news in crew.news():
                if isinstance(news.event, p.Learned):
                    keys += news.event.keys
                    found += news.event.facts
            if found:
                count += len(found)
                record.emit(p.Learned(tuple(keys), tuple(found)))
        spent, used = time.perf_counter() - begun, time.process_time() - used
        other = used_beside() - other
        crew.close()
        record.close()
        facts.close()
    print(
        f"{count} facts of {PACED} workers in {spent:.2f} s, {count / spent:.0f} a second: "
        f"{100 * UNITS * seconds / PACED / spent:.1f}% of what they can do; the engine used "
        f"{100 * used / spent:.1f}% of a core"
        + (f", and its connection to the cluster {100 * other / spent:.1f}%" if beside else "")
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sweep", *rest]:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
            sweep("1", rest[0] if rest else "2")
        case ["queue"]:
            queue(PACE, [Paced(str(n), PACED / PACE) for n in range(PACED)])
        case ["ray"]:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
            ray()
        case ["bridge", descriptor, address]:
            from tests.bench.bench_workers import PacedHosted as Actor  # importable by its name

            sys.exit(bridge.main(descriptor, address, Actor))
        case ["paced", descriptor, seconds]:
            paced(Channel(socket.socket(fileno=int(descriptor))), float(seconds))
        case _:
            sys.exit(__doc__)
