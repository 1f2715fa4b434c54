"""Faults, injected for real. Each module is one part of the world that breaks."""
