"""Stands before an HTTP port of Triton's: lets whole, bounded requests through, and relays the answers as they come.

Triton 2.51 has no limits of its own there: it waits for ever for what is half sent, and dies of what is malformed
(http_requests.py). A caller that hangs up is cut off from Triton at once, which ends its request; Triton's end is a
connection that is cut. Answers are not parsed beyond their head: a piece of a stream costs a read and a write.

One thread of serve's own; every connection is a task in it. All that callers may hold is in `Bounds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass

from hermes_deploy.errors import ServeError
from hermes_deploy.serving.http_requests import Refused, Request, RequestReader

_READ = 64 << 10
_BACKLOG = 1024
"""Connections that may come at once; those that the system drops try again only after seconds."""
_LINGER = 2.0
"""Seconds."""
_FLUSHES = 20
"""Tenths of a second that answers have to reach their callers when all is closed."""


@dataclass(frozen=True)
class Bounds:
    """`body_bytes` of one request; `held_bytes` of all bodies that are not yet passed on.

    `request_seconds`: in which a request must have come. `reading_seconds`: in which a caller must take something.
    """

    body_bytes: int
    held_bytes: int = 64 << 20
    connections: int = 512
    request_seconds: float = 30.0
    reading_seconds: float = 60.0


class Doorman:
    """Listens at `host`:`port` from the start until `close`, for Triton at 127.0.0.1:`inside`.

    While nobody listens there, callers are told to come back. Raises ServeError for a port that cannot be had.
    """

    def __init__(self, host: str, port: int, inside: int, bounds: Bounds) -> None:
        self._inside = inside
        self._bounds = bounds
        self._callers: dict[_Caller, None] = {}
        """In the order in which they came."""
        try:
            listening = socket.create_server((host, port), backlog=_BACKLOG)
        except OSError as error:
            raise ServeError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        self._loop = asyncio.new_event_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=[listening], name=f"doorman-{port}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def owing(self) -> int:
        """Callers whose answer is not whole yet, or has not left this process: they may read slowly."""
        return sum(caller.is_owed for caller in tuple(self._callers))

    def close(self) -> None:
        """Cuts every connection."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen(listening))

    async def _listen(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._meet, sock=listening, limit=_READ, backlog=_BACKLOG)
        await self._closed.wait()
        server.close()
        for _ in range(_FLUSHES):
            if not self.owing:
                break
            await asyncio.sleep(0.1)
        # the tasks of those who are left are cancelled with the loop

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = _Caller(reader, writer)
        self._callers[caller] = None
        try:
            if len(self._callers) > self._bounds.connections:
                self._make_room(caller)
            while await self._serve_one(caller):
                pass
            await caller.close(self._bounds.reading_seconds)
        except Refused as refused:
            await caller.refuse(refused)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # gone, or as good as gone: its own affair; or all is closed
        finally:
            del self._callers[caller]
            writer.transport.abort()

    def _make_room(self, newest: _Caller) -> None:
        """Whoever has waited longest without a whole request goes, so that the next one always gets in."""
        oldest = next(caller for caller in self._callers if caller.waits)
        if oldest is newest:
            raise Refused(503, "UNAVAILABLE", f"{len(self._callers) - 1} requests are being answered. Retry after 5 s")
        oldest.hang_up("many others wait to be heard")

    async def _serve_one(self, caller: _Caller) -> bool:
        """One request and its answer; whether another one may follow."""
        request = await self._take(caller)
        if request is None:
            return False
        caller.waits, caller.rest = False, request.rest
        try:
            inside = await asyncio.open_connection("127.0.0.1", self._inside, limit=_READ)
        except OSError:
            why = "the server is being started; its health port says how far it is. Retry after 5 s"
            raise Refused(503, "UNAVAILABLE", why) from None
        try:
            return await self._pass_on(caller, request, *inside)
        finally:
            inside[1].transport.abort()
            caller.held = 0

    async def _take(self, caller: _Caller) -> Request | None:
        """None when the caller goes, or has not begun to ask in the time that it has."""
        caller.waits, caller.begun = True, False
        reader = RequestReader(self._bounds.body_bytes)
        data, told = caller.rest, False
        try:
            async with asyncio.timeout(self._bounds.request_seconds):
                while True:
                    if data:
                        caller.begun = True
                        request = reader.feed(data)
                        if request is not None:
                            return request
                        caller.held = len(reader.body)
                        self._check_held()
                    if reader.wants_continue() and not told:
                        caller.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                        told = True
                    data = await caller.reader.read(_READ)
                    if not data:
                        return None
        except TimeoutError:
            if not caller.begun:
                return None
            late = f"the request was not whole after {self._bounds.request_seconds:g} s"
            raise Refused(408, "DEADLINE_EXCEEDED", late) from None

    def _check_held(self) -> None:
        if sum(caller.held for caller in self._callers) > self._bounds.held_bytes:
            largest = max((caller for caller in self._callers if caller.waits), key=lambda caller: caller.held)
            largest.hang_up("too many large requests come at once")

    async def _pass_on(
        self, caller: _Caller, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(request.head)
        writer.write(request.body)
        answering = asyncio.ensure_future(self._relay(caller, request, reader, writer))
        leaving = asyncio.ensure_future(caller.leaves())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return answering.result() if answering.done() else False
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _relay(
        self, caller: _Caller, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """The answer, as it comes; whether its end is known without the connection's."""
        try:
            await writer.drain()
            caller.held = 0
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            why = "the server ended before it answered, and is started again. Retry after 5 s"
            raise Refused(502, "UNAVAILABLE", why) from None
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"connection:")]
        lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
        goes_on = request.keep_alive and bool(lengths)
        lines.append(b"Connection: keep-alive" if goes_on else b"Connection: close")
        await self._give(caller, b"\r\n".join(lines) + b"\r\n\r\n")
        left = int(lengths[0].partition(b":")[2]) if lengths else -1
        while left and (data := await _more(reader, _READ if left < 0 else min(left, _READ))):
            left -= len(data) if left > 0 else 0
            await self._give(caller, data)
        # one that is shorter than it said is cut, for the caller to see
        return goes_on and left == 0

    async def _give(self, caller: _Caller, data: bytes) -> None:
        caller.writer.write(data)
        if caller.writer.transport.get_write_buffer_size() > _READ:
            async with asyncio.timeout(self._bounds.reading_seconds):
                await caller.writer.drain()


async def _more(reader: asyncio.StreamReader, most: int) -> bytes:
    """Empty when Triton has ended: what it said before still reaches the caller."""
    try:
        return await reader.read(most)
    except OSError:
        return b""


class _Caller:
    """A connection. `waits`: for its request to be whole, or to be let go, so that it may be cut off.

    `held`: bytes of its body that are here. `rest`: what came before it was asked for.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.waits = True
        self.begun = False
        self.held = 0
        self.rest = b""

    @property
    def is_owed(self) -> bool:
        return not self.waits or self.writer.transport.get_write_buffer_size() > 0

    async def leaves(self) -> None:
        """Until it hangs up; what it says meanwhile is kept for later, but not without bounds."""
        while len(self.rest) <= _READ:
            data = await self.reader.read(_READ)
            if not data:
                return
            self.rest += data
        await asyncio.get_running_loop().create_future()

    async def close(self, seconds: float) -> None:
        """When all is given that it is owed."""
        self.writer.close()
        async with asyncio.timeout(seconds):
            await self.writer.wait_closed()

    async def refuse(self, refused: Refused) -> None:
        """Says so, and hears it out for a moment: a connection that is cut in the middle of a body loses the answer."""
        self.waits, self.held = True, 0
        with contextlib.suppress(OSError, TimeoutError):
            self.writer.write(refused.response())
            self.writer.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self.reader.read(_READ):
                    pass

    def hang_up(self, why: str) -> None:
        if self.begun:
            self.writer.write(Refused(503, "UNAVAILABLE", f"{why}. Retry after 5 s").response())
        self.waits, self.held = False, 0
        self.writer.close()
