"""What the SDK sends with: every answer is read whole, within a size and a time, and never sent on elsewhere."""

import socket
import threading
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import httpx2

LIMIT = 8 << 20
"""bytes of the longest body that is read, packed or not. An answer of 30,000 tokens sent one by one takes about this;
a judge's, with twenty candidates, takes 4 kB. Values parsed from it may take twenty times the room."""

Send = Callable[[], Awaitable[httpx2.Response]]
attempt: ContextVar[Callable[[Send], Awaitable[httpx2.Response]]] = ContextVar("attempt")  # of this task


class BadBody(httpx2.RequestError):
    """A body that is too large, or packed in a way that was not asked for."""


class Sender(httpx2.AsyncClient):
    """For questions: hands every attempt to `attempt`, which bounds its time."""

    async def send(self, request: Any, **options: Any) -> Any:
        """As in httpx, but always read to its end."""

        async def once() -> httpx2.Response:
            whole: Any = {**options, "stream": True}
            response = await super(Sender, self).send(request, **whole)
            raw = bytearray()
            try:
                async for part in response.aiter_raw():
                    _add(raw, part)
            finally:
                await response.aclose()
            return _read(response, raw)

        return await attempt.get()(once)


class Teller(httpx2.Client):
    """For what is no question to a model; an attempt has `seconds` in all, not anew for every piece."""

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = seconds
        self.cut_off = False
        """whether an attempt was, so that the server may have done what it was asked"""

    def send(self, request: Any, **options: Any) -> Any:
        """As in httpx, but always read to its end."""
        sockets: list[socket.socket] = []
        late = threading.Event()

        def trace(_: str, info: dict[str, Any]) -> None:
            opened: Any = info.get("return_value")
            if hasattr(opened, "get_extra_info"):
                sockets.append(opened.get_extra_info("socket"))

        def hang_up() -> None:
            late.set()
            for opened in sockets:
                with suppress(OSError):
                    socket.socket.shutdown(opened, socket.SHUT_RDWR)  # wakes whoever reads from it

        request.extensions = {**request.extensions, "trace": trace}
        timer = threading.Timer(self.seconds, hang_up)
        timer.daemon = True
        with suppress(RuntimeError):  # no thread starts any more while the interpreter ends
            timer.start()
        try:
            return self._whole(request, options)
        except httpx2.RequestError as e:
            self.cut_off |= not isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout)
            if late.is_set() or isinstance(e, httpx2.ReadTimeout):
                raise httpx2.ReadTimeout(f"no answer within {self.seconds:g} s") from None
            raise
        finally:
            timer.cancel()

    def _whole(self, request: Any, options: dict[str, Any]) -> httpx2.Response:
        whole: Any = {**options, "stream": True}
        response, raw = super().send(request, **whole), bytearray()
        try:
            for part in response.iter_raw():
                _add(raw, part)
        finally:
            response.close()
        return _read(response, raw)


def _add(raw: bytearray, part: bytes) -> None:
    raw += part
    if len(raw) > LIMIT:
        raise BadBody(f"the answer is larger than {LIMIT >> 20} MiB")


def _read(response: httpx2.Response, raw: bytearray) -> httpx2.Response:
    """The same response with its body, unpacked."""
    packed = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in packed]
    body = _unpacked(bytes(raw), response.headers.get("content-encoding", "").strip().lower())
    return httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)


def _unpacked(raw: bytes, how: str) -> bytes:
    if how in ("", "identity") or not raw:
        return raw
    if how not in ("gzip", "x-gzip", "deflate"):
        raise BadBody(f"the answer is packed as {how[:20]!r}, which was not asked for")
    unpacker, body = zlib.decompressobj(zlib.MAX_WBITS | 32), bytearray()
    try:
        _add(body, unpacker.decompress(raw, LIMIT + 1))
    except zlib.error:
        raise BadBody(f"the answer cannot be unpacked as {how}") from None
    if not unpacker.eof:
        raise BadBody("the answer is packed and ends early")
    return bytes(body)
