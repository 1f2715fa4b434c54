"""The data that comes with voicefleet: configurations, and the metadata of voicepacks."""

from pathlib import Path

import voicefleet


def folder(name: str) -> Path:
    """The shipped folder ``name``: an installed one, else that of the source tree."""
    package = Path(voicefleet.__file__).resolve().parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parents[1] / name
