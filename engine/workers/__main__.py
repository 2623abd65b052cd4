"""Runs a worker: ``python -m engine.workers DESCRIPTOR``. Started by `engine.workers.local`."""

from __future__ import annotations

import os
import socket
import sys

from engine.service.process import own_process
from engine.workers.channel import Channel
from engine.workers.serving import serve


def main() -> int:
    """Entry point of a worker's process."""
    own_process()
    connected = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(Channel(connected))
    except OSError:  # the engine is gone, and with it who would read what is sent
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
