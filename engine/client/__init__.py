"""Clients of an engine: a `Link` over its socket, or `in_process` without one.

Nothing here imports a tensor library; `in_process` imports the engine by name when called.
"""

from engine.client.attached import Attached, attached, spawned
from engine.client.in_process import Client, InProcess, JobError, in_process, own_process
from engine.client.launch import END_SECONDS, launch, running_engine, start_ahead, start_engine
from engine.client.link import (
    EngineEndingError,
    EngineGoneError,
    Link,
    OtherVersionError,
    RunEndedError,
    SocketLink,
    connect,
)
from engine.client.log import log_file, log_to_file
from engine.client.needs import needs_model

__all__ = [
    "END_SECONDS",
    "Attached",
    "Client",
    "EngineEndingError",
    "EngineGoneError",
    "InProcess",
    "JobError",
    "Link",
    "OtherVersionError",
    "RunEndedError",
    "SocketLink",
    "attached",
    "connect",
    "in_process",
    "launch",
    "log_file",
    "log_to_file",
    "needs_model",
    "own_process",
    "running_engine",
    "spawned",
    "start_ahead",
    "start_engine",
]
