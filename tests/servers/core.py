"""The HTTP core of the test servers: HTTP/1.1, kept alive, over an asyncio protocol in a thread of this process."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest


class Connection(asyncio.Protocol):
    """One client's connection; whole requests go to `server.handle(connection, path, headers, body)`."""

    def __init__(self, server):
        self.server, self.buffer = server, b""

    def connection_made(self, transport):
        self.transport = transport
        self.server.open.add(transport)

    def connection_lost(self, error):
        self.server.open.discard(self.transport)

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self.buffer[:end].decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < size:
                return
            body, self.buffer = self.buffer[end + 4 : size], self.buffer[size:]
            self.server.handle(self, first.split(" ")[1], headers, json.loads(body or b"null"))

    def later(self, seconds, work, *given):
        asyncio.get_running_loop().call_later(seconds, work, *given)

    def send(self, status, answer, extra="", length=None):
        """An answer (text or bytes, else as JSON) after which the SDK need not wait long for its next attempt."""
        data = answer if isinstance(answer, str | bytes) else json.dumps(answer)
        data = data.encode() if isinstance(data, str) else data
        wait = "" if "etry-" in extra else "retry-after-ms: 10\r\n"
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {length or len(data)}\r\n{wait}{extra}\r\n"
        self.transport.write(head.encode() + data)


def collected(stream, error, match=None):
    """(what comes before the error, the error)."""
    got = []
    with pytest.raises(error, match=match) as caught:
        for item in stream:
            got.append(item)
    return got, caught.value


@contextmanager
def running(server):
    """Serve on a free port, at `server.url`; `server.hang_up()` closes every connection."""
    loop, server.open = asyncio.new_event_loop(), set()
    listening = loop.run_until_complete(loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=1024))
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"

    async def hang_up():
        for transport in list(server.open):
            transport.abort()
        await asyncio.sleep(0)

    server.hang_up = lambda: asyncio.run_coroutine_threadsafe(hang_up(), loop).result()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(listening.close)
        server.hang_up()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
