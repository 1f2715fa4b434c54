"""Mutations of bytes, stream entries' fields, and trees of plain values.

All randomness comes from the given ``Random``: the same seed gives the same mutations.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, cast

LARGEST: Final = 2**18
"""The maximum length of a mutated input, in bytes."""

NUMBERS: Final = (
    *("0", "-0", "1", "-1", "00", "+1", " 1", "1_0", "0x10", "1e3", "1e999", "-1e999", "1.5", ".5"),
    *("127", "128", "255", "256", "32767", "32768", "65535", "65536", "2147483647", "2147483648"),
    *("4294967295", "4294967296", "9007199254740993", "9223372036854775807"),
    *(
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
    ),
    *("nan", "inf", "-inf", "NaN", "٣", "²", "9" * 400, "9" * 5000, "0." + "9" * 5000),
)
"""Numbers that parsers get wrong: limits of types, other scripts, thousands of digits."""

BROKEN_UTF8: Final = (
    *(b"\xff", b"\xfe\xff", b"\x80", b"\xc0\xaf", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80"),
    *(b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8"),
    *(b"\0", b"\x1b[2J", b"\r\n", b"\xe2\x80\xae", b"\xf0\x9f\x8e\x89"),
)

_DIGITS: Final = re.compile(rb"\d+")
_INTERESTING: Final = (0, 1, 0x7F, 0x80, 0xFF)
_WIDTHS: Final = (1, 2, 4, 8)


def spoil(
    rng: Random, seeds: Sequence[bytes], words: Sequence[bytes] = (), *, largest: int = LARGEST
) -> bytes:
    """One of ``seeds`` after one to six mutations. ``words`` are tokens of the format."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        data = rng.choice(_MUTATIONS)(rng, data, seeds, words)
    return data[:largest]


_Mutation = Callable[[Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]


def _cut(rng: Random, data: bytes) -> tuple[int, int]:
    """Two ordered positions, mostly near each other."""
    start = rng.randint(0, len(data))
    length = rng.choice((1, 2, 4, 16, 64, len(data)))
    return start, min(len(data), start + rng.randint(0, length))


def _truncate(rng: Random, data: bytes, *_: object) -> bytes:
    return data[: rng.randint(0, len(data))]


def _extend(rng: Random, data: bytes, *_: object) -> bytes:
    return data + rng.randbytes(rng.choice((1, 8, 100)))


def _flip(rng: Random, data: bytes, *_: object) -> bytes:
    if not data:
        return data
    out = bytearray(data)
    for _bit in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _overwrite(rng: Random, data: bytes, *_: object) -> bytes:
    if not data:
        return data
    out = bytearray(data)
    out[rng.randrange(len(out))] = rng.choice((*_INTERESTING, rng.randrange(256)))
    return bytes(out)


def _delete(rng: Random, data: bytes, *_: object) -> bytes:
    start, stop = _cut(rng, data)
    return data[:start] + data[stop:]


def _splice(rng: Random, data: bytes, seeds: Sequence[bytes], *_: object) -> bytes:
    other = rng.choice(seeds)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _repeat(rng: Random, data: bytes, *_: object) -> bytes:
    start, stop = _cut(rng, data)
    times = rng.choice((2, 3, 10, 100))
    return data[:start] + data[start:stop] * times + data[stop:]


def _swell(rng: Random, data: bytes, *_: object) -> bytes:
    at = rng.randint(0, len(data))
    unit = rng.choice(
        (b"A", b" ", b"\n", b"[", b"{", b"9", b"\0", b"\xff", data[at : at + 3] or b"-")
    )
    return data[:at] + unit * rng.choice((50, 1_100, 20_000)) + data[at:]


def _number(rng: Random, data: bytes, *_: object) -> bytes:
    found = list(_DIGITS.finditer(data))
    if not found:
        return _binary_number(rng, data)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS).encode() + data[match.end() :]


def _binary_number(rng: Random, data: bytes, *_: object) -> bytes:
    width = rng.choice(_WIDTHS)
    if len(data) < width:
        return data
    top = 2 ** (8 * width)
    value = rng.choice((0, 1, top - 1, top // 2, top // 2 - 1, top // 4, rng.randrange(top)))
    at = rng.randrange(len(data) - width + 1)
    order = "little" if rng.random() < 0.5 else "big"
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def _break_utf8(rng: Random, data: bytes, *_: object) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(BROKEN_UTF8) + data[at:]


def _word(rng: Random, data: bytes, _: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    if not words:
        return _flip(rng, data)
    start, stop = _cut(rng, data)
    keep = stop if rng.random() < 0.5 else start
    return data[:start] + rng.choice(words) + data[keep:]


_MUTATIONS: Final[tuple[_Mutation, ...]] = (
    *(_truncate, _extend, _flip, _overwrite, _delete, _splice, _repeat, _swell, _number),
    *(_binary_number, _break_utf8, _word, _word),
)


# --- Fields of a stream entry or a hash ----------------------------------------------------------


def spoil_fields(
    rng: Random, seeds: Sequence[Mapping[bytes, bytes]], words: Sequence[bytes] = ()
) -> dict[bytes, bytes]:
    """One of ``seeds`` with fields dropped, renamed or swapped, and values mutated."""
    fields = dict(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3))):
        names = list(fields)
        name = rng.choice(names) if names else b"text"
        match rng.randrange(9):
            case 0:
                fields.pop(name, None)
            case 1:
                fields[spoil(rng, [name])] = fields.pop(name, b"")
            case 2:
                fields[name] = rng.choice(NUMBERS).encode()
            case 3:
                fields[name] = fields.get(rng.choice(names) if names else name, b"")
            case 4:
                fields |= rng.choice(seeds)
            case 5:
                fields[name] = rng.choice((b"", b"0", b"1", *BROKEN_UTF8))
            case 6 if words:
                fields[name] = rng.choice(words)
            case _:
                fields[name] = spoil(rng, [fields.get(name, b""), *fields.values()], words)
    return fields


# --- Trees, as YAML and JSON read them -----------------------------------------------------------

_LETTERS: Final = string.ascii_letters + "é漢🎉\0\n:#{}[]&*!|>'\"%@`"


def spoil_tree(rng: Random, tree: Any, strays: Sequence[Any] = ()) -> Any:
    """A copy of ``tree`` with one to three nodes replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _spoil_node(rng, tree, strays)
    return tree


def _spoil_node(rng: Random, node: Any, strays: Sequence[Any]) -> Any:
    children: list[Any] = []
    if isinstance(node, dict):
        children = list(cast(dict[Any, Any], node))
    elif isinstance(node, list | tuple):
        children = list(range(len(cast(Sequence[Any], node))))
    if children and rng.random() < 0.85:
        at = rng.choice(children)
        copy: Any = dict(cast(Any, node)) if isinstance(node, dict) else list(cast(Any, node))
        match rng.randrange(8):
            case 0:
                del copy[at]
            case 1 if isinstance(node, dict):
                name = stray(rng, strays)
                hashable = not isinstance(name, list | dict)
                copy[name if hashable else repr(cast(object, name))] = copy.pop(at)
            case _:
                copy[at] = _spoil_node(rng, copy[at], strays)
        return copy
    return stray(rng, strays)


def stray(rng: Random, strays: Sequence[Any] = ()) -> Any:
    """A value that few parsers expect."""
    match rng.randrange(10):
        case 0:
            nothing: tuple[Any, ...] = (None, True, False, "", [], {})
            return rng.choice(nothing)
        case 1:
            return rng.choice((0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400))
        case 2:
            return rng.choice((0.0, -0.0, 0.5, 1e308, -1e308, 1e-320, float("inf"), float("nan")))
        case 3:
            return rng.choice(NUMBERS)
        case 4:
            return "".join(rng.choice(_LETTERS) for _ in range(rng.choice((1, 3, 20, 300))))
        case 5:
            return rng.choice(("../../etc/passwd", "/etc/passwd", "~root", "a\\..\\b", "C:x", "\0"))
        case 6:
            deep: Any = rng.choice((1, "x", None))
            for _ in range(rng.choice((1, 3, 20))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            return deep
        case 7 if strays:
            return rng.choice(strays)
        case _:
            return [stray(rng, strays) for _ in range(rng.randrange(3))]
