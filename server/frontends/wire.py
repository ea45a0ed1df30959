"""Messages as bytes and back: msgpack. Pure; nothing that is read here can run code."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, get_args

import msgspec
from pydantic import SecretStr

from server.errors import ApiError
from server.frontends.framing import BadFrame
from server.frontends.messages import ANY_MESSAGE, Failure, Message, Question
from server.settings import Settings

Answer = TypeVar("Answer")


def write(said: object) -> bytes:
    """A message, an answer or a failure, as bytes."""
    return _ENCODER.encode(said)


def read_message(content: bytes) -> Message:
    """What the other process has asked or told.

    Raises:
        BadFrame: it is no message.
    """
    message: Message = _read(_MESSAGES, content)
    return message


def read_answer(question: Question[Answer], content: bytes) -> Answer:
    """The answer to this question.

    Raises:
        BadFrame: it is none.
    """
    answer: Answer = _read(_answers_to(type(question)), content)
    return answer


def read_failure(content: bytes) -> ApiError:
    """The error that came in place of an answer.

    Raises:
        BadFrame: it is none.
    """
    failure: Failure = _read(_FAILURES, content)
    return failure.error()


def _read(decoder: msgspec.msgpack.Decoder[Any], content: bytes) -> Any:
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"a message that cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    """A setting's value as msgpack has it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _write_settings(settings: Settings) -> dict[str, Any]:
    return {name: _plain(value) for name, value in settings}


def _read_settings(_: type, values: dict[str, Any]) -> Settings:
    return Settings(**values)


@functools.cache
def _answers_to(question: type[Question[Any]]) -> msgspec.msgpack.Decoder[Any]:
    (answer,) = get_args(vars(question)["__orig_bases__"][0])
    return msgspec.msgpack.Decoder(answer)


# Settings are the only type among all of these that msgspec does not know.
_ENCODER = msgspec.msgpack.Encoder(enc_hook=_write_settings)
_MESSAGES = msgspec.msgpack.Decoder(ANY_MESSAGE, dec_hook=_read_settings)
_FAILURES = msgspec.msgpack.Decoder(Failure)
