"""Reads YAML that cannot be trusted: bounded in size, plain types only, one kind of error.

PyYAML's safe loader runs no code, but a page of text can name its own parts until it stands for
more nodes than fit into memory, a scalar can be none of the type that its tag claims, and of two
equal keys the first is lost without a word.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, cast

import yaml

LARGEST: Final = 2**18
"""Of a file, in bytes."""

DEEPEST: Final = 40
MOST_NODES: Final = 50_000
"""Of a document, those that aliases stand for counted each time."""


class PlainLoader(yaml.SafeLoader):
    """A safe loader with limits. All that it raises is a ``yaml.YAMLError``."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. An alias weighs as much as what it stands for."""
        mark: Any = cast(Any, self.peek_event()).start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._nodes += 1
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="is nested too deeply", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            if is_alias:
                if node not in self._sizes:
                    raise yaml.MarkedYAMLError(problem="an alias in itself", problem_mark=mark)
                self._nodes += self._sizes[node]
            else:
                self._sizes[node] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(problem="stands for too many nodes", problem_mark=mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The node as an object."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            # 2001-99-99, !!int _, 5000 digits: the safe loader's own converters do not look first.
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"is no valid {kind}", node.start_mark
            ) from None

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,
    ) -> dict[Hashable, Any]:
        """The node as a dict."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, "a key is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        yaml.YAMLError: It is larger than any that is meant.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise yaml.MarkedYAMLError(problem=f"is larger than {LARGEST // 1024} KiB")
    return content.decode("utf-8")
