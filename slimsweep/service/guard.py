"""What is refused before any route is asked, and the headers of every answer.

- A request whose Host is a name that is not the service's own: another site may let its own name lead to this address (DNS
  rebinding), and its pages would then count as this service's for the browser. An IP address leads nowhere else.
- A request that may change something, from a page of another site (its Origin).
- A request that is too large.
"""

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from slimsweep.service.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "private, no-cache",  # asked for again each time; the answer is empty where nothing has changed
}


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, settings: Settings) -> None:
        self.app = app
        self.most = settings.largest_request
        own = {settings.host, socket.gethostname(), *settings.names}
        self.names = {name.lower().rstrip(".") for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there are no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refused := self.refusal(str(scope["method"]), headers):
            return await _answer(send, *refused)
        counted = _Counted(receive, send, self.most)
        try:
            await self.app(scope, counted.receive, counted.send)
        except Exception:  # what reading the broken request raised
            if not counted.refused:
                raise
        if counted.refused and not counted.answered:
            await _answer(send, 413, _too_large(self.most))

    def refusal(self, method: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """(status, sentence) for a request that is refused; None for any other."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.is_own(host):
            return 421, (
                f"this service does not know itself by the name {host[:200]!r}: open it by its IP address or by localhost, or "
                "start it with --allow-host and this name"
            )
        if method not in SAFE:
            origin = headers.get(b"origin", b"").decode("latin-1")
            site = headers.get(b"sec-fetch-site", b"same-origin").decode("latin-1")
            if (origin and _place_in(origin) != host.lower()) or site not in ("same-origin", "none"):
                return 403, "a page of another site may not act here"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            return 413, _too_large(self.most)
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this service by an IP address, or by a name that is its own."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            urlsplit(f"//{host}").port  # noqa: B018  raises where it is no number
        except ValueError:
            return False
        if name in self.names or name == "localhost" or name.endswith(".localhost"):
            return bool(name)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Counted:
    """One request whose body is counted while it is read; an answer to one that is too large says so."""

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self._receive, self._send, self._most = receive, send, most
        self._bytes = 0
        self.refused = self.answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most:
            self.refused = True
            return {"type": "http.disconnect"}  # nothing more of it is read
        return message

    async def send(self, message: Message) -> None:
        if self.refused:  # whatever the route made of the broken request
            if message["type"] == "http.response.start" and not self.answered:
                self.answered = True
                await _answer(self._send, 413, _too_large(self._most))
            return
        if message["type"] == "http.response.start":
            self.answered = True
            own = {name.lower() for name, _ in message["headers"]}
            added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)


def _place_in(origin: str) -> str:
    """Host and port of an Origin header; empty where it names none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _too_large(most: int) -> str:
    return f"the request is larger than the {most:,} bytes that this service reads"


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = {**HEADERS, "content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
