"""What a fault's function says of what it did."""

from typing import Literal

import msgspec


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """``until`` is when it was over, where that was before the function's return.

    ``forgets`` is what the server may have lost; ``None``: nothing, unless another one leads now.
    """

    target: str = ""
    forgets: Literal["nothing", "tail", "all"] | None = None
    note: str = ""
    until: float | None = None
