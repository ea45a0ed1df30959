"""A network namespace with nothing but loopback in it, for this process and its children.

Linux only, through the C library, since Python has `os.unshare` from 3.12 on. The caller must have
one thread. The kernel counts in it what has nowhere to go, whoever sends it: also native libraries.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from server.errors import SettingError

# <linux/sched.h>, <linux/sockios.h>, <linux/if.h>
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def enter_network_namespace() -> None:
    """Leave every network behind, for good.

    Raises:
        SettingError: this system has no namespaces, or does not allow them.
    """
    if sys.platform != "linux":
        raise SettingError("--offline needs Linux: its network namespaces are the proof")
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SettingError(
            f"--offline: this system allows no network namespaces ({reason}), so nothing can be "
            "proved here; containers need --security-opt seccomp=unconfined for it"
        )
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def packets_without_route() -> int:
    """How often something in this namespace tried to reach an address outside, by IPv4 or IPv6."""
    counted = 0
    rows = [line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines()]
    names, values = (row for row in rows if row[0] == "Ip:")
    counted += int(dict(zip(names, values, strict=True))["OutNoRoutes"])
    six = Path("/proc/self/net/snmp6")
    if six.exists():
        pairs = dict(line.split() for line in six.read_text().splitlines())
        counted += int(pairs["Ip6OutNoRoutes"])
    return counted
