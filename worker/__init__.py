"""The GPU side of the fleet: takes requests, speaks them, publishes frames."""
