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
    try:
        _be_oneself(user, group)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    except OSError as error:
        raise SettingError(
            f"--offline: this system allows no use of network namespaces ({error.strerror}), so "
            "nothing can be proved here; Ubuntu needs sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0 for it"
        ) from error


def _be_oneself(user: int, group: int) -> None:
    """Keep one's numbers in the new namespace; some systems allow the namespace and not this."""
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", file).write_text(text)


def attempts_to_leave() -> int:
    """How often something in this namespace tried to reach what is not there, by IPv4 or IPv6.

    That is an address outside, or a resolver of names on loopback (systemd's is at 127.0.0.53):
    datagrams to a loopback port where nobody listens.
    """
    counted = 0
    rows = [line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines()]
    for kind, counter in (("Ip:", "OutNoRoutes"), ("Udp:", "NoPorts")):
        names, values = (row for row in rows if row[0] == kind)
        counted += int(dict(zip(names, values, strict=True))[counter])
    six = Path("/proc/self/net/snmp6")
    if six.exists():
        pairs = dict(line.split() for line in six.read_text().splitlines())
        counted += int(pairs["Ip6OutNoRoutes"]) + int(pairs["Udp6NoPorts"])
    return counted
