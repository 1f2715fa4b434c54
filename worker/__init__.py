"""The GPU side of the fleet: takes requests, speaks them, publishes frames."""

__version__ = "0.1.0"
