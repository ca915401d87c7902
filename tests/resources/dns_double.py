"""A DNS server on loopback with a zone of our own, and a resolver that asks it.

Belongs here: A and AAAA answers over UDP (RFC 1035), one after the other where a name changes its mind. Does not: which
addresses are refused.
"""

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

A, AAAA = 1, 28
ANSWER_SECONDS = 15.0


class Dns:
    """A zone: per name a list of answers, each a list of addresses; the last one stays. Remembers what it was asked."""

    def __init__(self, zone: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._zone = {name: [list(answer) for answer in answers] for name, answers in zone.items()}
        self.asked: list[tuple[str, int]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = self._socket.getsockname()

    def resolve(self, host: str, port: int) -> list[str]:
        """As a system's resolver does: numbers in every notation are addresses already, names are asked for."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return [str(entry[4][0]) for entry in found]
        except socket.gaierror:
            pass
        found_here = [address for kind in (A, AAAA) for address in self._query(host.rstrip("."), kind)]
        if not found_here:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return found_here

    def serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if query == b"end":
                return
            self._socket.sendto(self._answer(query), sender)

    def end(self) -> None:
        self._socket.sendto(b"end", self.address)

    def close(self) -> None:
        self._socket.close()

    def _query(self, name: str, kind: int) -> list[str]:
        question = _encoded(name) + struct.pack("!HH", kind, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(ANSWER_SECONDS)
            client.sendto(struct.pack("!6H", 404, 0x0100, 1, 0, 0, 0) + question, self.address)
            answer = client.recv(4096)
        (count,) = struct.unpack_from("!H", answer, 6)
        at, found = 12 + len(question), []
        for _ in range(count):
            (length,) = struct.unpack_from("!H", answer, at + 10)  # behind a pointer to the name, type, class, lifetime
            found.append(str(ipaddress.ip_address(answer[at + 12 : at + 12 + length])))
            at += 12 + length
        return found

    def _answer(self, query: bytes) -> bytes:
        name, at = _decoded(query)
        (kind,) = struct.unpack_from("!H", query, at)
        self.asked.append((name, kind))
        answers = self._zone.get(name.lower(), [[]])
        # A name changes its mind between two looks, not between the two questions of one.
        current = answers.pop(0) if len(answers) > 1 and kind == AAAA else answers[0]
        packed = [ipaddress.ip_address(address).packed for address in current]
        records = [p for p in packed if len(p) == (4 if kind == A else 16)]
        head = query[:2] + struct.pack("!5H", 0x8180 if name.lower() in self._zone else 0x8183, 1, len(records), 0, 0)
        body = (b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(record)) + record for record in records)
        return head + query[12 : at + 4] + b"".join(body)


@contextmanager
def dns(zone: Mapping[str, Sequence[Sequence[str]]]) -> Iterator[Dns]:
    server = Dns(zone)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()
        server.close()


def _encoded(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.split(".")]
    if any(not 0 < len(label) < 64 for label in labels):
        raise socket.gaierror(socket.EAI_NONAME, "not a name")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _decoded(query: bytes) -> tuple[str, int]:
    """A query's name, and where what follows it begins."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels), at + 1
