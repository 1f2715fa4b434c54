"""The ``voicefleet`` command line."""

from producer.cli.app import main

__all__ = ["main"]
