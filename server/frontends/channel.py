"""The channel between the engine process and a front end: many questions at a time.

Either side asks, and answers what it is asked, in any order; some messages want no answer. Lives in
the event loop's thread; knows nothing of models, HTTP or keys.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from server.errors import ApiError, Draining
from server.frontends.framing import BadFrame, Frame, FrameReader, Kind, head_of
from server.frontends.messages import Failure, Message, Question
from server.frontends.wire import read_answer, read_failure, read_message, write
from server.program.rust_panics import panics_as_errors

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Channel(asyncio.Protocol):
    """One end of the channel.

    Args:
        stream: a connected socket.
        answer: what this end gives for a question, of that question's answer type; its ApiErrors
            cross over as they are.
        told: gets what is told.
        lost: called once nothing comes any more.

    Both raise BadFrame for what makes no sense; that ends the channel.
    """

    def __init__(
        self,
        stream: socket.socket,
        answer: Callable[[Question[Any]], Coroutine[Any, Any, object]],
        told: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._told = told
        self._lost = lost
        self._reader = FrameReader()
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[Question[Any], asyncio.Future[Any]]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._connected = asyncio.Event()
        self._over = False
        self._refusal: Callable[[], ApiError] | None = None  # of whoever asks

    @property
    def is_open(self) -> bool:
        """Whether what is told now will arrive, if the other end lives."""
        return self._transport is not None and not self._over

    @property
    def open_questions(self) -> int:
        """How many questions of either end have no answer yet."""
        return len(self._asked) + len(self._answering)

    async def open(self) -> None:
        """Read and write from now on."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=self._stream)

    async def ask(self, question: Question[Answer]) -> Answer:
        """The other end's answer; who is cancelled while waiting takes the question back.

        There the work is cancelled with the same message; without one if the channel ends.

        Raises:
            ApiError: the other end's, or that of `refuse_questions`.
            Draining: the channel is over.
        """
        if self._transport is None:
            await self._connected.wait()
        if self._refusal is not None:
            raise self._refusal()
        request = next(self._numbers) & 0xFFFFFFFF
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[request] = question, answer
        self._write(Kind.ASK, request, write(question))
        try:
            return await answer
        except BaseException as error:
            if self._asked.pop(request, None) is not None:  # it has not been answered
                self._write(Kind.CANCEL, request, _message_of(error))
            raise

    def tell(self, message: Message) -> None:
        """Send what wants no answer."""
        self._write(Kind.TELL, 0, write(message))

    def withdraw_questions(self, why: Callable[[], ApiError] = Draining) -> None:
        """Take all questions back; who waits for an answer gets this error."""
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(why())

    def refuse_questions(self, why: Callable[[], ApiError]) -> None:
        """Take all questions back and refuse new ones, until `accept_questions`."""
        self._refusal = why
        self.withdraw_questions(why)

    def accept_questions(self) -> None:
        """The other end answers again."""
        if not self._over:
            self._refusal = None

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._connected.set()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except BadFrame as error:
            self._hang_up(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._refusal = Draining
        for task in list(self._answering.values()):
            task.cancel()
        self.withdraw_questions()
        self._asked.clear()
        self._lost()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ANSWER | Kind.FAILURE:
                self._settle(frame)
            case Kind.CANCEL:
                # Not left to the task, which may not have begun.
                if (task := self._answering.pop(frame.request, None)) is not None:
                    task.cancel(frame.content.decode(errors="replace") or None)
            case Kind.TELL:
                self._told(read_message(frame.content))
            case Kind.ASK:
                question = read_message(frame.content)
                if not isinstance(question, Question):
                    raise BadFrame(f"{type(question).__name__} as a question")
                # A task may not begin at once: it would answer before it can be taken back.
                task = asyncio.create_task(self._answer_one(frame.request, question))
                self._answering[frame.request] = task

    def _settle(self, frame: Frame) -> None:
        if frame.request not in self._asked:  # it was taken back
            return
        question, answer = self._asked[frame.request]
        if not answer.done():
            if frame.kind is Kind.ANSWER:
                answer.set_result(read_answer(question, frame.content))
            else:
                answer.set_exception(read_failure(frame.content))
        del self._asked[frame.request]

    async def _answer_one(self, request: int, question: Question[Any]) -> None:
        try:
            with panics_as_errors():
                self._write(Kind.ANSWER, request, write(await self._answer(question)))
        except ApiError as error:
            self._fail(request, error)
        except BadFrame as error:
            self._hang_up(error)
        except Exception:
            log.exception("a question of the other process failed")
            self._fail(request, ApiError("The server failed unexpectedly; trying again is safe."))
        finally:
            self._answering.pop(request, None)

    def _fail(self, request: int, error: ApiError) -> None:
        self._write(Kind.FAILURE, request, write(Failure.of(error)))

    def _write(self, kind: Kind, request: int, content: bytes = b"") -> None:
        if self._transport is not None and not self._over:
            self._transport.writelines((head_of(kind, request, content), content))

    def _hang_up(self, error: BadFrame) -> None:
        log.error("the other process sent %s", error)
        self.abort()


def _message_of(error: BaseException) -> bytes:
    """With which a task was cancelled; empty if there is none."""
    is_told = isinstance(error, asyncio.CancelledError) and error.args and error.args[0]
    return str(error.args[0]).encode() if is_told else b""
