"""A wire to a server on loopback that loses, cuts and changes what goes over it.

Belongs here: bytes in both directions. Does not: what they mean, but that a request begins with its verb.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Wire:
    """Each connection is carried on to the server, with what was ordered done to it."""

    def __init__(self, endpoint: str) -> None:
        self._server = (urlsplit(endpoint).hostname or "", urlsplit(endpoint).port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.change_request: Callable[[bytes], bytes] = bytes
        self.change_answer: Callable[[bytes], bytes] = bytes
        self.lose_answer_to: Callable[[bytes], bool] = lambda _: False
        """Decides by a request's first bytes; the first such answer is lost, with the connection."""
        self.lost = 0
        self.cut_after: list[int] = []
        """Bytes of a request after which the next connections, one each, are cut."""
        self.cut_answer_after: list[int] = []

    def carry(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._connection, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            # Closing alone leaves a thread in `accept`, which a signal makes look again: at a later wire's listener.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _connection(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            asked = bytearray()
            there = threading.Thread(target=self._requests, args=(client, server, asked), daemon=True)
            there.start()
            self._answers(client, server, asked)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join()

    def _requests(self, client: socket.socket, server: socket.socket, asked: bytearray) -> None:
        sent = 0
        with suppress(OSError):
            while piece := client.recv(1024**2):
                asked[:] = piece[:200] if piece.startswith((b"PUT ", b"POST ", b"GET ", b"HEAD ")) else asked
                sent += len(piece)
                if self.cut_after and sent > self.cut_after[0]:
                    self.cut_after.pop(0)
                    break
                server.sendall(self.change_request(piece))
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket, asked: bytearray) -> None:
        sent = 0
        with suppress(OSError):
            while piece := server.recv(1024**2):
                if not self.lost and self.lose_answer_to(bytes(asked)) and b"100 Continue" not in piece:
                    self.lost += 1
                    return
                sent += len(piece)
                if self.cut_answer_after and sent > self.cut_answer_after[0]:
                    self.cut_answer_after.pop(0)
                    return
                client.sendall(self.change_answer(piece))


@contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    wire = Wire(endpoint)
    thread = threading.Thread(target=wire.carry, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.close()
