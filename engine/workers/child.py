"""A process of this machine that runs a module of ours at the other end of a socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

END_SECONDS = 5.0
"""Seconds that a process may take to end when nobody needs it any more."""


def started(
    module: Sequence[str], theirs: socket.socket, said: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process.

    Args:
        module: that it runs, and its arguments.
        theirs: its end of the socket, of which it has its own copy.
        said: gets what it prints.
        environment: variables.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        # -P: do not import a folder named engine in the working directory.
        [sys.executable, "-P", "-m", *module],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,  # ctrl+c in the terminal is for the engine
        pass_fds=(theirs.fileno(),),
        env=environment,
    )


def last_words(said: IO[bytes]) -> str:
    """``: `` and the last line that a process printed; empty if it printed nothing."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()[:200]}" if lines else ""
