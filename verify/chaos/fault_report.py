"""What a fault reports after it was injected."""

from typing import Literal

import msgspec


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """The fault's target and its effect.

    ``until`` is when it ended (monotonic clock), if that was before its function returned.
    ``forgets`` is what the server may have lost; ``None``: nothing, unless the primary changed.
    """

    target: str = ""
    forgets: Literal["nothing", "tail", "all"] | None = None
    note: str = ""
    until: float | None = None
