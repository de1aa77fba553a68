"""Python imports this at every start where this folder is on its path: notes in the file EAR whom a process calls."""

import os
import sys


def _hear(event, arguments):
    """An audit hook (docs.python.org, Audit events table): looking a name up, connecting, sending."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        whom = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple):
        whom = arguments[1][0]
    else:
        return
    with open(os.environ["EAR"], "a", encoding="utf-8") as file:
        file.write(f"{whom.decode() if isinstance(whom, bytes) else whom}\n")


if "EAR" in os.environ:
    sys.addaudithook(_hear)
