"""The socket that a server listens on: one address, or every interface by one socket."""

from __future__ import annotations

import errno
import socket

EVERY_INTERFACE = "*"


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens on `host`, an address or a name; `*` is every interface, IPv6 and IPv4 by one socket
    where this machine has IPv6, else IPv4. Port 0 takes a free one. Raises OSError."""
    if host == EVERY_INTERFACE:
        return _listen_everywhere(port, backlog)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


def _listen_everywhere(port: int, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        except OSError as error:
            # The kernel knows IPv6, but it is switched off here (sysctl disable_ipv6, as in many containers).
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("0.0.0.0", port), backlog=backlog)  # noqa: S104
