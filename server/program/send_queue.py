"""What the kernel holds of a connection's bytes until its other end has taken them."""

from __future__ import annotations

import array
import contextlib
import socket
import sys


def unacknowledged_bytes(connection: socket.socket) -> int:
    """Bytes that were written and that the other end's kernel has not taken yet; 0 where none tells.

    SIOCOUTQ of Linux (tcp(7)) has the same number as TIOCOUTQ.
    """
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    told = array.array("i", [0])
    with contextlib.suppress(OSError):  # closed meanwhile, or no socket of TCP
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, told)
    return told[0]
