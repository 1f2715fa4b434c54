"""What tests stand on: servers, fleets, clients of raw commands, and the check of left keys."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The repository's top folder."""
