"""Normalises text for all engines.

Markup, emoji and invisible characters are removed. Letters and digits are always kept, and nothing
is expanded into words: that depends on the language and is left to the engine.
"""

import re
import unicodedata

EMOJI = (
    "\u2300-\u23ff\u25a0-\u2775\u2794-\u27bf\u2b00-\u2bff"  # technical, shapes, dingbats, stars
    "\u20e3\ufe0e\ufe0f"  # keycap, text and emoji presentation
    "\U0001f000-\U0001f0ff\U0001f130-\U0001faff"  # tiles, cards, flags, pictographs
)
"""Emoji and decorative symbols, as the contents of a regular expression's character class.

Circled digits, which are dingbats too, are not included: they are spoken.
"""

_EMOJI = re.compile(f"[{EMOJI}]+")

# At the start of a line: heading, quote and bullet signs; a rule or code fence all along it.
_LINE_MARKUP = re.compile(
    r"^[^\S\n]*(?:(?:\#{1,6}|>|[-*+•‣◦·])[^\S\n]+)+|^[^\S\n]*(?:[-*_=`~][^\S\n]*){3,}$",
    re.MULTILINE,
)
_EMPHASIS = re.compile(
    r"\*{2,}|_{2,}|~{2,}|`+"  # strong, struck out, code: also inside a word
    r"|(?<!\w)[*_]+(?=\S)|(?<=\S)[*_]+(?!\w)"  # emphasis, but not 5*3, 5 * 3 or snake_case
)
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})
"""Unicode categories: control, format (zero width, bidi, tags), surrogate, private use."""


def normalise(text: str) -> str:
    """The text to speak: NFC, on one line, single spaces, without markup and emoji."""
    text = _LINE_MARKUP.sub("", text)
    text = _EMPHASIS.sub("", text)
    text = _EMOJI.sub(" ", text)
    visible = "".join(
        char for char in text if char.isspace() or unicodedata.category(char) not in _INVISIBLE
    )
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def speakable(text: str) -> bool:
    """Whether ``text`` has a letter or digit, and so something to speak."""
    return any(char.isalnum() for char in text)
