"""Inputs that no well-meaning peer would send, drawn by seed, for everything that reads any."""
