"""How to install an extra of voicefleet: the same way as voicefleet itself was installed."""

from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit

import msgspec


class _Folder(msgspec.Struct, frozen=True):
    editable: bool = False


class _Repository(msgspec.Struct, frozen=True):
    vcs: str
    requested_revision: str = ""


class _Origin(msgspec.Struct, frozen=True):
    """``direct_url.json`` of an installed package that came from no index (PEP 610)."""

    url: str
    dir_info: _Folder | None = None
    vcs_info: _Repository | None = None


def install(extra: str) -> str:
    """The pip command that adds ``extra`` to this installation of voicefleet."""
    try:
        said = distribution("voicefleet").read_text("direct_url.json")
    except PackageNotFoundError:  # run from its source tree
        return f"pip install '.[{extra}]' in voicefleet's source tree"
    if said is None:
        return f"pip install 'voicefleet[{extra}]'"
    return command(extra, said)


def command(extra: str, direct_url: str) -> str:
    """The same from the text of a ``direct_url.json``."""
    origin = msgspec.json.decode(direct_url, type=_Origin)
    if origin.dir_info is not None:
        editable = "-e " if origin.dir_info.editable else ""
        return f"pip install {editable}'{unquote(urlsplit(origin.url).path)}[{extra}]'"
    source = origin.url
    if origin.vcs_info is not None:
        source = f"{origin.vcs_info.vcs}+{source}"
        if origin.vcs_info.requested_revision:
            source += f"@{origin.vcs_info.requested_revision}"
    return f"pip install 'voicefleet[{extra}] @ {source}'"
