"""Spells English numbers as words, for a model that was trained on words.

Integers are spelled as upstream does with ``inflect`` ("one thousand, two hundred and five").
Beyond that it knows decimals, ordinals, per cent, money, times of day, years and phone numbers.
"""

import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("", " thousand", " million", " billion", " trillion")
_LARGEST = 15  # digits that are read as one number

_IRREGULAR = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth"},
    **{"eight": "eighth", "nine": "ninth", "twelve": "twelfth"},
}
_COINS = {"$": "dollar", "€": "euro", "£": "pound"}

_WHOLE = r"\d{1,3}(?:,\d{3})+(?![\d,])|\d+"
_NUMBER = re.compile(
    rf"""
    (?P<phone>(?<![\w-])\d{{3}}-(?:\d{{3}}-)?\d{{4}}(?![\w-]))
  | (?P<hour>(?<![\d:.,])\d{{1,2}}):(?P<minute>[0-5]\d)(?![\d:])
  | (?P<sign>(?<!\S)-)?(?P<coin>[$€£])?(?P<whole>{_WHOLE})
    (?:(?P<ordinal>st|nd|rd|th)\b|(?P<decimals>(?:\.\d+)+)?(?P<percent>\s?%)?)
    (?P<scale>\s(?:thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE | re.ASCII,
)


def spell(text: str) -> str:
    """``text`` with its numbers in words.

    "$3.50 on the 2nd" is "three dollars fifty on the second". Numbers of more than 15 digits, or
    with a leading zero, are read digit by digit. Digits other than 0 to 9 stay as they are.
    """
    return _NUMBER.sub(_spoken, text)


def _spoken(found: re.Match[str]) -> str:
    words = _words(found)
    # "H100" and "5kg" are two words each.
    before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
    return " " * before.isalpha() + words + " " * after.isalpha()


def _words(found: re.Match[str]) -> str:
    if found["phone"]:
        return ", ".join(_digits(group) for group in found["phone"].split("-"))
    if found["hour"]:
        return _time(int(found["hour"]), found["minute"])
    whole, decimals = found["whole"].replace(",", ""), found["decimals"] or ""
    sign, scale = "minus " if found["sign"] else "", found["scale"] or ""
    if found["coin"]:
        return sign + _money(found["coin"], whole, decimals, scale)
    if found["ordinal"]:
        return sign + _ordinal(_whole(whole)) + scale
    bare = not (sign or decimals or scale or found["percent"] or "," in found["whole"])
    words = _year(whole) if bare and len(whole) == 4 and whole[0] == "1" else _whole(whole)
    return sign + words + _decimals(decimals) + (" percent" if found["percent"] else "") + scale


def _whole(digits: str) -> str:
    if len(digits) > _LARGEST or (len(digits) > 1 and digits[0] == "0"):
        return _digits(digits)
    return cardinal(int(digits))


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


def _decimals(decimals: str) -> str:
    return "".join(f" point {_digits(group)}" for group in decimals.split(".")[1:])


def cardinal(number: int) -> str:
    """``number`` in words, from 0 to below 10 ** 15."""
    if number < 1000:
        return _below_thousand(number)
    groups: list[str] = []
    for scale in _SCALES:
        number, group = divmod(number, 1000)
        if group:
            joint = " and " if not scale and group < 100 else ", "
            groups.insert(0, joint + _below_thousand(group) + scale)
    return "".join(groups).removeprefix(", ")


def _below_thousand(number: int) -> str:
    hundreds, tens = divmod(number, 100)
    if not hundreds:
        return _below_hundred(tens)
    return f"{_ONES[hundreds]} hundred" + (f" and {_below_hundred(tens)}" if tens else "")


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _ordinal(words: str) -> str:
    cut = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[cut:]
    if last.endswith("y"):
        return words[:cut] + last[:-1] + "ieth"
    return words[:cut] + _IRREGULAR.get(last, last + "th")


def _year(digits: str) -> str:
    """1000 to 1999, from 1100 on read in pairs, as years are and other such numbers may be."""
    century, year = int(digits[:2]), int(digits[2:])
    if century == 10:
        return cardinal(int(digits))
    return f"{_below_hundred(century)} {_pair(year) or 'hundred'}"


def _time(hour: int, minute: str) -> str:
    return f"{_below_hundred(hour)} {_pair(int(minute))}".rstrip()


def _pair(number: int) -> str:
    """Two digits as read in a year or time: "" for 0, "oh five", "eighty-four"."""
    return ("oh " if 0 < number < 10 else "") + (_below_hundred(number) if number else "")


def _money(coin: str, whole: str, decimals: str, scale: str) -> str:
    name = _COINS[coin]
    if scale or (decimals and len(decimals) != 3):
        return f"{_whole(whole)}{_decimals(decimals)}{scale} {name}s"
    main = f"{_whole(whole)} {name}{'s' * (whole != '1')}"
    cents = int(decimals[1:]) if decimals else 0
    return f"{main} {_below_hundred(cents)}" if cents else main
