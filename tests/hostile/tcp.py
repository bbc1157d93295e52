"""What TCP knows about delivery: how much the peer has acknowledged, and how to end a connection with a reset."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct

_SIOCOUTQ = 0x5411  # linux/sockios.h: bytes in the send queue that the peer has not acknowledged
_TCP_CLOSE = 7  # linux/tcp_states.h
_BYTES_ACKED_OFFSET = 120  # of tcpi_bytes_acked in struct tcp_info, linux/tcp.h since 4.1
_TCP_INFO_SIZE = 232


class Acknowledgements:
    """Watches one accepted socket through a duplicate, which outlives asyncio's own when the peer resets.

    Linux only: elsewhere nothing counts as acknowledged, so that a test fails instead of believing.
    """

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._probe: socket.socket | None = transport.get_extra_info("socket").dup()
        self._tls = transport.get_extra_info("ssl_object") is not None

    def complete(self, written: int) -> bool:
        """Say whether all *written* bytes of this connection have been acknowledged.

        Under TLS the records are longer than what was written; there an empty send queue of a connection that has
        not been reset is taken as proof.
        """
        if self._probe is None or not hasattr(socket, "TCP_INFO"):
            return False
        info = self._probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        if not self._tls:
            return int(struct.unpack_from("Q", info, _BYTES_ACKED_OFFSET)[0]) >= written
        return info[0] != _TCP_CLOSE and self._unacknowledged() == 0

    def _unacknowledged(self) -> int:
        assert self._probe is not None
        assert isinstance(self._transport, asyncio.WriteTransport)
        queued = int(struct.unpack("i", fcntl.ioctl(self._probe.fileno(), _SIOCOUTQ, bytes(4)))[0])
        return queued + self._transport.get_write_buffer_size()

    def release(self, *, reset: bool = False) -> None:
        """Let go of the duplicate, before the socket itself is closed: TCP ends with the last of the two."""
        if self._probe is None:
            return
        if reset:  # linger of zero seconds: close sends RST and drops what is queued
            self._probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._probe.close()
        self._probe = None
