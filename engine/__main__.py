"""Runs the engine of one session: ``python -m engine SESSION``. Started by `engine.client`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading

from engine.client.launch import IDLE_MINUTES
from engine.client.log import LOG_FORMAT, STARTS
from engine.errors import EngineError
from engine.service.process import own_process
from engine.service.server import Engine as Served
from engine.service.server import Server
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.paths import facts_file, session_folder, socket_file


def step_back(nice: int) -> None:
    """Lower this process's priority, so that others (the interface first) get the processor."""
    os.nice(max(0, nice - os.nice(0)))
    # Triage computes in small steps while another thread imports a model library: at the default
    # switch interval of 5 ms it would wait that long for the interpreter after every step.
    sys.setswitchinterval(0.0005)
    own_process()


def import_ahead() -> None:
    """Import what the first job of an interface needs, triage, while that interface is imported.

    A model library is imported only once there is a model to load: it takes seconds, in which the
    table of layers would have to share the interpreter.
    """
    from engine.measure.weights.fused import kernels

    kernels()


async def serve(session: str, idle_seconds: float) -> None:
    """Lock the session, listen, and run its engine until a client stops it, or nobody needs it."""
    facts = FactStore(facts_file())
    journal = Journal(session_folder(session), facts)
    server = Server(socket_file(session), session)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    engines = []

    def make() -> Served:
        from engine.service.engine import Engine

        engines.append(Engine(journal, facts, server.announce))
        return engines[0]

    try:
        await server.run(make, idle_seconds)
    finally:
        for engine in engines:
            await asyncio.to_thread(engine.close)


def main() -> int:
    """Entry point of the engine's process."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    parser.add_argument("session")
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument(
        "--idle", type=float, default=IDLE_MINUTES,
        help="minutes without clients and jobs after which it ends",
    )  # fmt: skip
    asked = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=LOG_FORMAT,
    )
    logging.getLogger("engine").info(
        "%s: session %s, process %d", STARTS, asked.session, os.getpid()
    )
    step_back(asked.nice)
    threading.Thread(target=import_ahead, name="import ahead", daemon=True).start()
    try:
        asyncio.run(serve(asked.session, 60 * asked.idle))
    except EngineError as error:
        logging.getLogger("engine").error("%s", error)
        return error.exit_code
    # Threads left by a library, or a load that cannot be interrupted, must not keep it alive.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
