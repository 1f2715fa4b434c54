"""The orchestrator's side of the fleet: the client library."""
