"""A platform that plays faults on a real socket: one behaviour after another, every request written down.

Threads and blocking sockets, because the faults are those of the socket: a reset with the request still unread, a body
cut in the middle, a server that hangs. It answers what an agent asks as the contract says whenever it is well.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from http import HTTPStatus
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.uploads import staged


class Fault(Enum):
    """What a socket can do to a request, in the order of its way."""

    REFUSE = auto()
    RESET_UNREAD = auto()
    RESET_READ = auto()
    HANG = auto()


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP. With `sent_bytes` the body ends there, and the connection with it, or `hangs` from then on.

    `announced` is what Content-Length says, if it is not the truth; below 0 it is left out.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    sent_bytes: int | None = None
    hangs: bool = False
    announced: int | None = None

    def wire(self) -> bytes:
        length = len(self.body) if self.announced is None else self.announced
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        if length >= 0:
            lines.append(f"Content-Length: {length}")
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in self.headers)])
        return f"{head}\r\n\r\n".encode() + self.body[: self.sent_bytes]


def said(status: int, body: Any, **headers: str) -> Answer:
    """JSON; `Retry_After="7"` is a header."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, json.dumps(body).encode(), (("Content-Type", "application/json"), *named))


@dataclass(frozen=True)
class Asked:
    """A request that was read, and the number of the connection it came on (from 1)."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    connection: int


Play = Fault | Answer
Script = Play | Callable[[Asked], Play | None] | None
"""A fault, or a choice by request (None: as if well), or None: well."""


@dataclass
class Feed:
    """The rows of the workspace's feed, oldest first."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def read(self, query: dict[str, str]) -> Answer:
        limit = int(query["limit"])
        since = query.get("since_id")
        if since is None:
            return said(200, self.rows[::-1][:limit])
        ids = [row["id"] for row in self.rows]
        if since not in ids:
            return said(410, {"error": "since_id cursor not found"})
        return said(200, self.rows[ids.index(since) + 1 :][:limit])


class FaultyPlatform:
    """`play` sets what happens from now on; connections that are open then are closed."""

    def __init__(self, *, row: dict[str, Any] | None = None, keep_alive: str | None = None) -> None:
        """`row` answers GET /workspaces/:id; `keep_alive` is announced in a header of that name."""
        self.row = row or {}
        self.keep_alive = keep_alive
        self.feed = Feed()
        self.asked: list[Asked] = []
        self.connections = 0
        self.tls: ssl.SSLContext | None = None
        self.before_body: Callable[[str], object] = lambda _path: None
        """Called with a request's path before its body is read; while it blocks, nothing of the body is taken."""
        self._script: Script = None
        self._next: list[Play] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._healed = threading.Event()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        self._hang_up()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def play(self, script: Script) -> None:
        """From now on, for every request, until the next `play`."""
        self._script = script
        self._hang_up()
        if script is Fault.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self._start()

    def play_next(self, *faults: Play) -> None:
        """These, for the next requests on the connections as they are; then as before."""
        self._next = list(faults)

    def heal(self) -> None:
        self.play(None)

    def count(self, ending: str) -> int:
        """How many requests were read whose path ends so."""
        return sum(asked.path.endswith(ending) for asked in self.asked)

    # connections

    def _start(self) -> None:
        assert self._listener is not None
        self._run(self._accept, self._listener)

    def _run(self, work: Callable[..., None], *given: Any) -> None:
        thread = threading.Thread(target=work, args=given, name="faulty-platform", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open.add(connection)
            self._run(self._serve, connection, number)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None

    def _hang_up(self) -> None:
        before, self._healed = self._healed, threading.Event()
        before.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self.tls is not None:
                connection = self._secured(connection, self.tls)
            while self._exchange(connection, number):
                pass
        except OSError:  # it went away, or its handshake failed: the test sees the other end
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _secured(self, connection: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """The same connection under TLS: the plain socket object is empty from now on."""
        with self._lock:
            self._open.discard(connection)
            secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._open.add(secured)
        try:
            secured.do_handshake()
        except OSError:
            with self._lock:
                self._open.discard(secured)
            secured.close()
            raise
        return secured

    def _exchange(self, channel: socket.socket, number: int) -> bool:
        """One request and what becomes of it; False when the connection is over."""
        healed = self._healed
        if not _has_something_to_read(channel):
            return False
        play: Script = self._next.pop(0) if self._next else self._script
        if play is Fault.RESET_UNREAD:
            _reset(channel)
            return False
        asked = _read(channel, number, self.before_body)
        if asked is None:
            return False
        self.asked.append(asked)
        if callable(play):
            play = play(asked)
        if play is Fault.RESET_READ:
            _reset(channel)
            return False
        if play is Fault.HANG:
            healed.wait(60)
            return False
        answer = play if isinstance(play, Answer) else self._well(asked)
        channel.sendall(answer.wire())
        if answer.hangs:
            healed.wait(60)
        return answer.sent_bytes is None

    def _well(self, asked: Asked) -> Answer:
        answer = self._answer(asked)
        if self.keep_alive is None:
            return answer
        return Answer(answer.status, answer.body, (*answer.headers, ("Keep-Alive", self.keep_alive)))

    def _answer(self, asked: Asked) -> Answer:
        match asked.path.split("/")[1:]:
            case ["registry", "register"]:
                return said(200, {"status": "registered", "delivery_mode": "poll"})
            case ["registry", "heartbeat"]:
                return said(200, {"status": "ok"})
            case ["registry", _, "peers"]:
                return said(200, [])
            case ["workspaces", _]:
                return said(200, self.row)
            case ["workspaces", _, "activity"]:
                return self.feed.read(asked.query)
            case ["workspaces", _, "notify"]:
                return said(200, {"status": "sent"})
            case ["workspaces", _, "a2a"]:
                return said(200, {"status": "queued", "delivery_mode": "poll", "method": "message/send"})
            case ["workspaces", workspace_id, "chat", "uploads"]:
                return said(200, {"files": staged(workspace_id, asked.headers["content-type"], asked.body)})
            case _:
                return said(404, {"error": "not found"})


class HeldUploads(FaultyPlatform):
    """Reads the body of an upload only when it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.before_body = lambda path: path.endswith("/chat/uploads") and self.go_on.wait(20)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on.set()
        super().__exit__(kind, error, trace)


LARGE = 24 * 1024 * 1024
"""Bytes of an upload of which all buffers between two sockets hold no half."""


def _has_something_to_read(channel: socket.socket) -> bool:
    """Wait for a request without taking it; False at the end of the connection. TLS cannot look without taking."""
    return isinstance(channel, ssl.SSLSocket) or bool(channel.recv(1, socket.MSG_PEEK))


def _reset(channel: socket.socket) -> None:
    """Close with RST instead of FIN, whatever is still unread."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read(channel: socket.socket, number: int, before_body: Callable[[str], object]) -> Asked | None:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = channel.recv(65536)
        if not piece or not raw and not piece[:1].isalpha():  # the first byte of TLS is no letter
            channel.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return None
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    url = urlsplit(target)
    before_body(url.path)
    rest = bytearray(body)
    while len(rest) < int(headers.get("content-length", 0)):
        piece = channel.recv(1 << 20)
        if not piece:
            raise ConnectionError("the body ended before its length")
        rest += piece
    return Asked(method, url.path, dict(parse_qsl(url.query)), headers, bytes(rest), number)


# certificates


class Authority:
    """A certificate authority for a test: `file` is what SSL_CERT_FILE names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of this test")])
        self.file = directory / "authority.pem"
        certificate = self._built(self._name, self._key, is_authority=True)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, *, is_trusted: bool) -> ssl.SSLContext:
        """A server's context for 127.0.0.1: signed by this authority, or by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        certificate = self._built(name, key) if is_trusted else self._built(name, key, signed_by=(name, key))
        file = self._directory / f"server-{is_trusted}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _built(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        signed_by: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
        is_authority: bool = False,
    ) -> x509.Certificate:
        issuer, signer = signed_by or (self._name, self._key)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if not is_authority:
            address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
            builder = builder.add_extension(address, critical=False)
        return builder.sign(signer, hashes.SHA256())
