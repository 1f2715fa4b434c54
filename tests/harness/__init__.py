"""Shared by tests: servers, fleets, raw clients, and the check of leftover keys."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The repository's top folder."""
