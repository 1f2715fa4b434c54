"""Parsing of the flat byte fields that Redis returns, with errors that name the field."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

MAX_NAME: Final = 128
MAX_MODEL: Final = 64

SESSION: Final = re.compile(rf"[A-Za-z0-9_.:\-]{{1,{MAX_NAME}}}", re.ASCII)
"""Session ids, request names and voices."""

NAME_WORDS: Final = f"1 to {MAX_NAME} characters of A-Z a-z 0-9 _ . : -"
"""The same, for people."""

MODEL: Final = re.compile(rf"[a-z0-9][a-z0-9_.\-]{{0,{MAX_MODEL - 1}}}", re.ASCII)
"""Model ids."""

_DECIMAL = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

Fields = Mapping[bytes, bytes]
"""The fields of a stream entry or hash as they come from the server."""


def paired(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A stream entry's fields; the server sends them as a flat list: name, value, name, value."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


class FieldError(ValueError):
    """A field whose value the protocol does not allow.

    ``str(error)`` reads ``<field>: <problem>``; the problem names the allowed values and never
    quotes the text to be spoken.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def excerpt(value: str, limit: int = 40) -> str:
    """A short, printable form of an untrusted value, for an error message."""
    shown = ascii(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def text(fields: Fields, name: str, most: int | None = None) -> str | None:
    """The field as UTF-8 text, ``None`` if it is absent.

    Raises:
        FieldError: It is not valid UTF-8, or has more than ``most`` characters.
    """
    raw = fields.get(name.encode())
    if raw is None:
        return None
    try:
        value = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FieldError(name, f"is not valid UTF-8 at byte {error.start}") from None
    if most is not None and len(value) > most:
        raise FieldError(name, f"has {len(value)} characters; at most {most} are allowed")
    return value


def name(fields: Fields, name: str) -> str | None:
    """The field if it is a session id or a name of that form, ``None`` if it is absent."""
    value = text(fields, name)
    if value is not None and not SESSION.fullmatch(value):
        raise FieldError(name, f"{excerpt(value)} is not {NAME_WORDS}")
    return value


def integer(fields: Fields, name: str, low: int, high: int) -> int | None:
    """The field as an integer in ``[low, high]``, ``None`` if it is absent."""
    value = text(fields, name)
    if value is None:
        return None
    # isdecimal alone admits other scripts' digits; int() alone admits "1_0" and " 1".
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise FieldError(name, f"{excerpt(value)} is not an integer from {low} to {high}")
    number = int(value)
    if not low <= number <= high:
        raise FieldError(name, f"{excerpt(value)} is not an integer from {low} to {high}")
    return number


def number(fields: Fields, name: str, low: float, high: float) -> float | None:
    """The field as a finite number in ``[low, high]``, ``None`` if it is absent."""
    value = text(fields, name)
    if value is None:
        return None
    parsed = float(value) if len(value) <= 32 and _DECIMAL.fullmatch(value) else None
    if parsed is None or not low <= parsed <= high:
        raise FieldError(name, f"{excerpt(value)} is not a number from {low} to {high}")
    return parsed


def flag(fields: Fields, name: str) -> bool:
    """The field as ``0`` or ``1``; absent means ``0``."""
    value = text(fields, name)
    if value not in (None, "0", "1"):
        raise FieldError(name, f"{excerpt(value or '')} is not 0 or 1")
    return value == "1"


def choice(fields: Fields, name: str, allowed: Sequence[str]) -> str | None:
    """The field if it is one of ``allowed``, ``None`` if it is absent."""
    value = text(fields, name)
    if value is not None and value not in allowed:
        raise FieldError(name, f"{excerpt(value)} is not one of {', '.join(allowed)}")
    return value
