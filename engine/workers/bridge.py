"""Connects an engine to a cluster of Ray: ``python -m engine.workers.bridge DESCRIPTOR ADDRESS``.

The only module that imports Ray, in a process of its own: Ray writes to the terminal, and ends its
process a minute after the cluster's head is gone. Ray starts actors, and says when one is lost.
Their events do not pass through it, which would take several times the engine's own time for them:
an actor connects to this host, and that connection is given to the engine. Ray retries nothing:
what a lost worker had in hand is given out again by the engine.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from engine import protocol as p
from engine.errors import EngineError
from engine.workers.asked import JOINED
from engine.workers.cluster import Failed, Joined, Lost, Node, Place, placed, tell
from engine.workers.hosted import Hosted

TOKEN = 32
"""Bytes by which an actor is known."""
TOKEN_SECONDS = 5.0
"""Seconds that they may take."""


def main(descriptor: str, address: str, hosted: type = Hosted) -> int:
    """Entry point of the process.

    Args:
        descriptor: of the socket to the engine.
        address: of the cluster.
        hosted: what the actors are.
    """
    control = socket.socket(fileno=int(descriptor))
    os.chdir("/")  # Ray has workers import from the folder that this process runs in
    try:
        tell(control, Joined(_nodes(address)))
    except Exception as error:  # noqa: BLE001  (Ray raises all kinds, and the engine says it)
        none = isinstance(error, ConnectionError) and address == JOINED
        if none and not os.environ.get("RAY_ADDRESS"):
            tell(control, Failed("there is none, and RAY_ADDRESS is not set"))
        else:
            tell(control, Failed(_last_line(error)))
        return 1
    telling = threading.Lock()
    for place, connected in placed(control):
        given = (hosted, place, connected, control, telling)
        threading.Thread(target=_serve, args=given, daemon=True).start()
    os._exit(0)  # the engine is gone; Ray ends the actors of a process that has ended


def _nodes(address: str) -> tuple[Node, ...]:
    """Join the cluster; returns its nodes but this host's own."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    here = ray.get_runtime_context().get_node_id()
    return tuple(
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            gpus=int(node["Resources"].get("GPU", 0)),
            processors=int(node["Resources"].get("CPU", 0)),
        )
        for node in sorted(ray.nodes(), key=lambda node: (node["NodeName"], node["NodeID"]))
        if node["Alive"] and node["NodeID"] != here
    )


def _serve(
    hosted: type, place: Place, line: socket.socket, control: socket.socket, telling: threading.Lock
) -> None:
    """Have an actor connect to the engine; end it when the engine closes its line."""
    found: list[socket.socket] = []
    with line:
        try:
            _run(hosted, place, line, found)
        except Exception as error:  # noqa: BLE001  (Ray raises all kinds, and the engine says it)
            with telling, suppress(OSError):
                tell(control, Lost(place.worker, _why(error, place)))
        # The engine reads until its end: a host that has vanished sends none.
        for each in (line, *found):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in found:
            each.close()


def _run(hosted: type, place: Place, line: socket.socket, found: list[socket.socket]) -> None:
    """Start an actor, and wait for its end; ``found`` gets its connection."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    token = secrets.token_bytes(TOKEN)
    with socket.create_server((here, 0), family=family) as server:
        actor: Any = (
            ray.remote(hosted)
            .options(
                num_gpus=1 if place.gpu else 0,
                num_cpus=place.processors,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
            )
            .remote(p.WIRE_VERSION, place.threads)
        )
        until = actor.connect.remote(here, server.getsockname()[1], token)
        threading.Thread(target=_accept, args=(server, token, line, found), daemon=True).start()
        threading.Thread(target=_end_with, args=(line.dup(), actor), daemon=True).start()
        try:
            ray.get(until)
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # which wakes who accepts


def _accept(
    server: socket.socket, token: bytes, line: socket.socket, found: list[socket.socket]
) -> None:
    """Give the engine the connection of the actor, which alone knows the token."""
    with suppress(OSError):  # it was closed
        while not found:
            connected, _ = server.accept()
            connected.settimeout(TOKEN_SECONDS)
            try:
                said = connected.recv(TOKEN, socket.MSG_WAITALL)
            except OSError:
                said = b""
            if not secrets.compare_digest(said, token):
                connected.close()
                continue
            connected.settimeout(None)
            found.append(connected)
            socket.send_fds(line, [b"c"], [connected.fileno()])


def _end_with(line: socket.socket, actor: Any) -> None:
    """End the actor once the engine has closed its line, whatever it is doing."""
    import ray

    with line, suppress(OSError):
        line.recv(1)
    ray.kill(actor)


def _why(error: Exception, place: Place) -> str:
    """Why an actor is lost, in a sentence."""
    import ray
    from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if place.node not in alive or isinstance(error, ActorUnschedulableError):
        return "its host has left the cluster"
    if isinstance(error, ActorUnavailableError):
        return "its host cannot be reached"
    text = str(error)
    if isinstance(error, RayActorError) and "creation task" not in text:
        _, _, detail = text.partition("Worker exit detail: ")
        reason = detail.partition(" Some common causes")[0].strip()
        return f"its process ended{f': {reason}' if reason else ''}"
    return _last_line(error)


def _last_line(error: Exception) -> str:
    """What an error of Ray says after the stack of the other process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.removeprefix(f"{EngineError.__module__}.{EngineError.__name__}: ")[:400]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
