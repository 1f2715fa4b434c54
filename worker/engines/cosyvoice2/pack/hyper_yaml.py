"""Reads HyperPyYAML as data: tags become descriptions of objects instead of objects.

Nothing is imported, called or opened. The name in a tag is kept as a string, and its meaning is
left to the caller. Known tags: ``!new:``, ``!name:``, ``!apply:``, ``!module:`` (with
arguments as a mapping or a list), ``!ref <key>`` with arithmetic, ``!copy``, ``!tuple``,
``!placeholder``. ``!include:`` is refused, as is every other tag.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec
import yaml

from voicefleet.schemas.fields import excerpt
from voicefleet.worker.plain_yaml import PlainLoader

Value: TypeAlias = Any
"""A scalar, list, dict, ``Component`` or ``Reference``."""


MOST_STEPS: Final = 10_000
"""The most keys and items visited to resolve one value."""

DEEPEST: Final = 60
LONGEST_SUM: Final = 200
LARGEST_NUMBER: Final = 2**63


class HyperYamlError(ValueError):
    """The text is not valid HyperPyYAML, or refers to a key that does not exist."""


class Component(msgspec.Struct, frozen=True):
    """A tag such as ``!new:target``: what HyperPyYAML would construct or call, and its arguments.

    ``kind`` is the tag's name: ``new``, ``name``, ``apply`` or ``module``.
    """

    kind: str
    target: str
    arguments: dict[str, Value] = {}
    positional: tuple[Value, ...] = ()


class Reference(msgspec.Struct, frozen=True):
    """``!ref``: another key's value, or an arithmetic expression of such values."""

    expression: str


def parse(text: str) -> dict[str, Value]:
    """Parse ``text`` into its top-level mapping.

    Raises:
        HyperYamlError: It is not YAML, not a mapping, or has an unknown tag.
    """
    try:
        content: object = yaml.load(text, _Loader)  # noqa: S506 a SafeLoader underneath
    except yaml.YAMLError as error:
        raise HyperYamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise HyperYamlError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise HyperYamlError("it is not a mapping of keys to values")
    return {str(key): value for key, value in content.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def resolve(value: Value, names: Mapping[str, Value]) -> Value:
    """Resolve references in ``value``, also within lists, to the top-level ``names``.

    ``<key>`` alone may refer to any value; in an expression (``+ - * / // %`` and brackets) all
    keys must be numbers.

    Raises:
        HyperYamlError: A key does not exist, references are circular, an expression is invalid, or
            the value is larger than any model needs.
    """
    return _Resolver(names).value_of(value, 0)


class _Resolver:
    """One call of ``resolve``, with limits: references can grow exponentially."""

    def __init__(self, names: Mapping[str, Value]) -> None:
        self._names = names
        self._steps = 0
        self._open: set[str] = set()

    def value_of(self, value: Value, depth: int) -> Value:
        self._steps += 1
        if self._steps > MOST_STEPS or depth > DEEPEST:
            raise HyperYamlError("its references lead too far")
        if isinstance(value, list):
            return [self.value_of(item, depth + 1) for item in cast("list[Value]", value)]
        if not isinstance(value, Reference):
            return value
        expression = value.expression.strip()
        if match := _KEY.fullmatch(expression):
            return self._look_up(match[1], depth)
        if len(expression) > LONGEST_SUM:
            raise HyperYamlError(f"{excerpt(expression)} is too long for a sum")

        def number_of(match: re.Match[str]) -> str:
            found = self._look_up(match[1], depth)
            if isinstance(found, bool) or not isinstance(found, int | float):
                raise HyperYamlError(f"<{match[1]}> is no number in {expression!r}")
            if abs(found) > LARGEST_NUMBER:
                raise HyperYamlError(f"<{match[1]}> is too large a number")
            return f"({found!r})"

        return _calculate(_KEY.sub(number_of, expression), expression)

    def _look_up(self, key: str, depth: int) -> Value:
        if key in self._open:
            raise HyperYamlError(f"<{excerpt(key)[1:-1]}> refers to itself")
        if key not in self._names:
            raise HyperYamlError(f"<{excerpt(key)[1:-1]}> is not there")
        self._open.add(key)
        try:
            return self.value_of(self._names[key], depth + 1)
        finally:
            self._open.discard(key)


_KEY: Final = re.compile(r"<([^<>]+)>")

_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _calculate(numbers: str, expression: str) -> int | float:
    """Evaluate an arithmetic expression by walking its syntax tree; nothing is executed."""

    def value_of(node: ast.AST) -> int | float:
        match node:
            case ast.Expression(body=body):
                return value_of(body)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value_of(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value_of(left), value_of(right))
            case _:
                raise HyperYamlError(f"{expression!r} is no sum of numbers and <keys>")

    try:
        return value_of(ast.parse(numbers.strip(), mode="eval"))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        raise HyperYamlError(f"{expression!r} is no sum of numbers and <keys>") from None


class _Loader(PlainLoader):
    """Loads YAML's own types and HyperPyYAML's tags."""


def _component(kind: str) -> Callable[[_Loader, str, yaml.Node], Component]:
    def construct(loader: _Loader, target: str, node: yaml.Node) -> Component:
        if isinstance(node, yaml.MappingNode):
            pairs: dict[Any, Any] = loader.construct_mapping(node, deep=True)
            return Component(kind, target, {str(key): value for key, value in pairs.items()})
        if isinstance(node, yaml.SequenceNode):
            return Component(kind, target, {}, tuple(loader.construct_sequence(node, deep=True)))
        return Component(kind, target)

    return construct


def _reference(loader: _Loader, node: yaml.Node) -> Reference:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "!ref needs <key>", node.start_mark)
    return Reference(str(loader.construct_scalar(node)))


def _tuple(loader: _Loader, node: yaml.Node) -> Value:
    """A list for a sequence; the text of ``(1, 2)``, which no known key uses."""
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return str(node.value)


def _nothing(loader: _Loader, node: yaml.Node) -> None:
    """A value that the file leaves to its reader: None."""


def _refused(loader: _Loader, suffix: str, node: yaml.Node) -> Value:
    raise yaml.constructor.ConstructorError(
        None, None, f"!include:{suffix} would read another file, which is refused", node.start_mark
    )


for _kind in ("new", "name", "apply", "module"):
    _Loader.add_multi_constructor(f"!{_kind}:", _component(_kind))
_Loader.add_multi_constructor("!include:", _refused)
_Loader.add_constructor("!ref", _reference)
_Loader.add_constructor("!copy", _reference)
_Loader.add_constructor("!tuple", _tuple)
_Loader.add_constructor("!placeholder", _nothing)
# PyYAML follows YAML 1.1, which reads 1e-06, without a point, as a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+0123456789."),
)
