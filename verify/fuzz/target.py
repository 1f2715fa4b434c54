"""A fuzzing target: a parser, its inputs, and the errors that it may raise."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Target:
    """One parser.

    ``draw`` makes an input from nothing but its ``Random``; ``feed`` has it read. Of errors only
    those of the types ``errors`` may come out, each of them documented where it is raised. ``room``
    is how much address space it may take, in bytes.
    """

    draw: Callable[[Random], Any]
    feed: Callable[[Any], object]
    errors: tuple[type[Exception], ...] = ()
    room: int = 2**30


class Broken(AssertionError):
    """The parser accepted an input and broke what its documentation promises."""


def ensure(holds: bool, what: str) -> None:
    """Raise ``Broken`` unless ``holds``."""
    if not holds:
        raise Broken(what)
