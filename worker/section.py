"""What every section of a worker's configuration is made of."""

from typing import Annotated

import msgspec
from msgspec import Meta

Millis = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]

Secret = Annotated[str, Meta(extra={"secret": True})]
"""Text that no error message shows."""

FilePath = Annotated[str, Meta(extra={"path": True})]
"""A file or folder. One in a configuration file is relative to that file. Empty: none."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section: immutable, strict about its keys, with a default for each of them."""
