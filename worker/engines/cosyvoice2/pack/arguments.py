"""Checks the arguments of a component in a HyperPyYAML file, one by one.

The reader asks for each argument that it knows, names the values it supports, and ends with
``done``. All problems are collected, so that one error can name them.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from voicefleet.schemas.fields import excerpt
from voicefleet.worker.engines.cosyvoice2.pack.hyper_yaml import (
    Component,
    HyperYamlError,
    Value,
    resolve,
)

T = TypeVar("T")

LONGEST_SHOWN: Final = 120


class Arguments:
    """The arguments of one component. Those that are never asked for count as problems."""

    def __init__(
        self, path: str, given: Mapping[str, Value], names: Mapping[str, Value], problems: list[str]
    ) -> None:
        self._path = path
        self._given = given
        self._names = names
        self._problems = problems
        self._read: set[str] = set()

    def value(self, key: str, kind: type[T], fallback: T) -> T:
        """The argument as a ``kind``. If it is missing or invalid: a problem, and ``fallback``."""
        if key not in self._given:
            self._problem(key, "is missing")
            return fallback
        value = self._resolved(key)
        if isinstance(value, bool) and kind is not bool:
            self._problem(key, f"is {_shown(value)}, not {kind}")
            return fallback
        try:
            converted = msgspec.convert(value, kind)
        except (msgspec.ValidationError, OverflowError) as error:
            self._problem(key, f"is {_shown(value)}: {error}")
            return fallback
        if isinstance(converted, float) and not math.isfinite(converted):
            self._problem(key, f"is {converted}, which is no number")
            return fallback
        return converted

    def only(self, key: str, *supported: object) -> None:
        """Require the argument, if it is given, to have one of the ``supported`` values."""
        if key in self._given and (value := self._resolved(key)) not in supported:
            what = " or ".join(repr(value) for value in supported)
            self._problem(key, f"is {_shown(value)}, but this engine implements only {what}")

    def component(self, key: str, target: str) -> "Arguments":
        """The arguments of a nested component, whose class must be ``target``."""
        found = self._resolved(key)
        path = f"{self._path}{key}."
        if isinstance(found, Component) and found.target == target and not found.positional:
            return Arguments(path, found.arguments, self._names, self._problems)
        if key not in self._given:
            self._problem(key, "is missing")
        else:
            kind = found.target if isinstance(found, Component) else type(found).__name__
            self._problem(key, f"is {_shown(kind)}, but this engine implements only {target!r}")
        return Arguments(path, {}, self._names, [])

    def mapping(self, key: str) -> "Arguments":
        """A nested mapping, plain or wrapped in ``!new:omegaconf.DictConfig {content: ...}``."""
        found = self._resolved(key)
        if isinstance(found, Component):
            found = found.arguments.get("content", found.arguments)
        if not isinstance(found, dict):
            self._problem(key, "is missing" if key not in self._given else "is not a mapping")
            return Arguments(f"{self._path}{key}.", {}, self._names, [])
        arguments = {str(name): value for name, value in cast("dict[Any, Any]", found).items()}
        return Arguments(f"{self._path}{key}.", arguments, self._names, self._problems)

    def done(self, *training: str) -> None:
        """Report arguments that were not asked for, except those that only ``training`` uses."""
        for key in self._given:
            if key not in self._read and key not in training:
                self._problem(key, "is an option that this engine does not know")

    def _resolved(self, key: str) -> Value:
        self._read.add(key)
        try:
            return resolve(self._given.get(key), self._names)
        except HyperYamlError as error:
            self._problem(key, str(error))
            return None

    def _problem(self, key: str, what: str) -> None:
        self._problems.append(f"{self._path}{excerpt(key, LONGEST_SHOWN)[1:-1]} {what}")


def _shown(value: Value) -> str:
    """A value as shown in error messages, shortened to a line."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
