"""Finds sentence ends from the text alone.

A full stop may end a sentence, or belong to an abbreviation, a number or an initial; the text after
it decides. A decision needs at most ``LOOKAHEAD`` characters after the stop, and is deferred until
they have arrived, so that it never depends on how the text is split into pieces.
"""

import re

from voicefleet.worker.text.normalise import EMOJI, speakable

LOOKAHEAD = 64

CLOSERS = "\"'”’»›)\\]}*_`」』）》】〕〉"  # noqa: RUF001
"""Characters that may stand between a stop and the next space, for a character class."""

_STOPS = ".!?…؟۔।॥"  # noqa: RUF001
_CJK_STOPS = "。！？｡．"  # noqa: RUF001 (full-width on purpose)
_CANDIDATE = re.compile(rf"(?P<stop>[{_STOPS}{_CJK_STOPS}]+)[{CLOSERS}{EMOJI}]*|(?P<lines>\n\s*)")
_CJK_STOP = re.compile(rf"[{_CJK_STOPS}]")
_GAP = re.compile(rf"[\s\"'“‘«‹(\[{{*_`¿¡–—{EMOJI}-]*")  # noqa: RUF001
"""Characters that may stand between two sentences, before the first letter of the second."""

_LAST_STOP = re.compile(
    rf"(?<![{_STOPS}{_CJK_STOPS}])(?P<stop>[{_STOPS}{_CJK_STOPS}]++)"
    rf"[{CLOSERS}{EMOJI}]*+[\s{EMOJI}]*+\Z"
)
"""The stops at the end of a text, with the characters that may follow them."""

_HEADING = re.compile(r"[^\S\n]*#{1,6}[^\S\n]")
_LINE_START = re.compile(r"(?:[-*+•‣◦·>]|#{1,6}|\d{1,3}[.)])\s|([-*_=`~])\1{2}")
"""A bullet, quote, heading or number, or a rule or code fence."""
_LINE_START_LENGTH = 7
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,3}")
_ABBREVIATION = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*$")
_ABBREVIATION_LENGTH = 24
_WORD = re.compile(r"[^\W\d_]+")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_NEVER_LAST = _words(
    "adm bzw capt cf dr e.g eg esp fr gen gov hon i.e ie lt maj messrs mlle mme mr mrs ms prof "
    "rev sen sgt viz vs z.b"
)
"""Abbreviations after which the sentence always goes on."""

_BEFORE_NUMBER = _words(
    "apr art aug ca ch chap dec eq feb fig figs jan jul jun mar no nos nov nr oct p pp sec sect "
    "sep sept tab vol"
)
"""Abbreviations before a number; without one they are words, or end the sentence."""

_OFTEN_LAST = _words("ave blvd co corp inc jr ltd mt rd sr st")
"""Abbreviations that end a sentence as often as not, as "U.S." and "p.m." do."""

_IN_LOWER_CASE = _words("approx dept etc excl incl tel")
"""Abbreviations after which a sentence goes on in lower case, if it does."""

_ALSO_WORDS = _words("art no")
"""Lower-case forms of these are more often a sentence's last word than an abbreviation."""

_STARTERS = _words(
    "a after although an and are as at because but by can did do does even for he her here his "
    "how however i if in is it its later let many meanwhile most my no not now of on once one "
    "our please she since so some still thanks that the their then there these they this those "
    "today was we well what when where which while who why with yes yet you your"
)
"""Words that are capitalised only at the start of a sentence."""


class NeedsMoreTextError(Exception):
    """More text is needed to decide."""


def sentence_end(text: str, stop: int, *, final: bool) -> int | None:
    """Find the end of the sentence that begins ``text``: the offset after its last character.

    Args:
        text: The text that has arrived so far, from the sentence's first character on.
        stop: The longest sentence of interest, in characters.
        final: No more text follows, so the end of ``text`` ends a sentence.

    Returns:
        The offset, or None if the sentence is longer than ``stop``.

    Raises:
        NeedsMoreTextError: Later text decides. Never raised if ``final``.
    """
    for candidate in _CANDIDATE.finditer(text):
        begin, end = candidate.span()
        if begin >= stop:
            return None
        if end - begin > LOOKAHEAD:
            end = begin + LOOKAHEAD
        elif end == len(text):
            if not final:
                raise NeedsMoreTextError
            break
        elif candidate["lines"]:
            if not _ends_line(text, begin, end, final=final):
                continue
        elif not _ends_sentence(text, begin, candidate.end("stop"), end, final=final):
            continue
        length = len(text[:end].rstrip())
        return length if length <= stop else None
    if not final:
        if len(text) <= stop:
            raise NeedsMoreTextError
        return None
    length = len(text.rstrip())
    return length if length <= stop else None


def reads_complete(text: str) -> bool:
    """Whether a sentence seems to end where ``text`` does, before more has arrived.

    ``text`` begins with a sentence. A point that may belong to an abbreviation, an initial, a list
    number or a decimal number does not count as an end.
    """
    length = len(text.rstrip())
    breaks = text.count("\n", length)
    heading = _HEADING.match(text, text.rfind("\n", 0, length) + 1)
    if length and (breaks > 1 or (breaks and heading)):
        return True
    last = _LAST_STOP.search(text)
    if last is None:
        return False
    begin, end = last.span("stop")
    if text[begin:end] not in (".", "．"):  # noqa: RUF001 (full-width on purpose)
        return True
    if begin and text[begin - 1].isdecimal():
        line = text.rfind("\n", 0, begin) + 1
        return end < len(text) and not _LIST_NUMBER.fullmatch(text, line, begin)
    before = _ABBREVIATION.search(text, max(0, begin - _ABBREVIATION_LENGTH), begin)
    return before is None or not _may_go_on(text, before)


def _may_go_on(text: str, before: re.Match[str]) -> bool:
    """Whether the sentence may continue after this word and its point."""
    if before[0] in _ALSO_WORDS or (before[0] == "No" and not speakable(text[: before.start()])):
        return False
    word = before[0].lower()
    if word in _NEVER_LAST | _BEFORE_NUMBER | _OFTEN_LAST | _IN_LOWER_CASE:
        return True
    # An initial, or "p.m." and the like; not "example.com".
    return max(len(part) for part in word.split(".")) <= (2 if "." in word else 1)


def _ends_line(text: str, begin: int, end: int, *, final: bool) -> bool:
    """Whether the line break ``text[begin:end]`` separates paragraphs, list items or headings."""
    if text.count("\n", begin, end) > 1:
        return True
    if _HEADING.match(text, text.rfind("\n", 0, begin) + 1):
        return True
    if len(text) < end + _LINE_START_LENGTH and not final:
        raise NeedsMoreTextError
    return _LINE_START.match(text, end) is not None


def _ends_sentence(text: str, begin: int, stop: int, end: int, *, final: bool) -> bool:
    """Whether the stops ``text[begin:stop]``, with closers up to ``end``, end a sentence."""
    if _CJK_STOP.search(text, begin, stop):
        return True
    if not text[end].isspace():
        return False
    gap = _GAP.match(text, end, end + LOOKAHEAD)
    follows = gap.end() if gap else end
    if "\n" in text[end:follows] or follows == end + LOOKAHEAD:
        return True
    if follows == len(text):
        if not final:
            raise NeedsMoreTextError
        return True
    if text[follows].islower() or text[follows] in ",;:":
        return False
    return text[begin:stop] != "." or _is_full_stop(text, begin, follows, final=final)


def _is_full_stop(text: str, at: int, follows: int, *, final: bool) -> bool:
    """Whether the point at ``at``, with a capital or the like at ``follows``, is a full stop."""
    if _LIST_NUMBER.fullmatch(text, text.rfind("\n", 0, at) + 1, at):
        return False
    before = _ABBREVIATION.search(text, max(0, at - _ABBREVIATION_LENGTH), at)
    if before is None:
        return True
    word = before[0].lower()
    if word in _NEVER_LAST:
        return False
    if word in _BEFORE_NUMBER:
        return not text[follows].isdigit()
    initial = len(word) == 1 and before[0].isupper()
    if not (initial or "." in word or word in _OFTEN_LAST):
        return True
    starter = _WORD.match(text, follows, follows + LOOKAHEAD)
    if starter is None:
        return not text[follows].isdigit()
    if starter.end() == len(text) and not final:
        raise NeedsMoreTextError
    return starter[0].lower() in _STARTERS
