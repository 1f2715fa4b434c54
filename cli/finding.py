"""One line of the doctor's report."""

from collections.abc import AsyncGenerator
from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's report. ``advice`` is empty where all is well."""

    grade: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


Findings = AsyncGenerator[Finding]
