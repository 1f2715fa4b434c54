"""Texts that take 2 to 12 seconds to speak, drawn alike on every machine."""

import random
from typing import Final

SECONDS: Final = (2.0, 12.0)

CHARS_PER_SECOND: Final = 25 / 1.8
"""A synthetic pack speaks 1.8 tokens a character, of which 25 are a second."""

_SENTENCES: Final = (
    "The birch canoe slid on the smooth planks, and nobody on the shore looked up.",
    "Your order has left the warehouse this morning and should arrive before noon.",
    "Tomorrow will be mostly cloudy, with a little rain in the west.",
    "It is easy to tell the depth of a well, if you can wait for the stone to fall.",
    "Would you like me to read the second message as well?",
    "The train on platform four is late, but the one on platform five will wait for it.",
    "Glue the sheet to the dark blue background, and press it down with care.",
)


def text_of(seconds: float, start: int = 0) -> str:
    """Whole words that take about ``seconds`` to speak, from sentence ``start`` on."""
    chars = round(seconds * CHARS_PER_SECOND)
    text = ""
    while len(text) <= chars:
        text += _SENTENCES[start % len(_SENTENCES)] + " "
        start += 1
    return text[:chars].rpartition(" ")[0].rstrip(" ,.?") + "."


def draw(chance: random.Random, shortest: float, longest: float) -> str:
    """A text whose length is uniformly distributed between the two, in seconds."""
    return text_of(chance.uniform(shortest, longest), chance.randrange(len(_SENTENCES)))
