"""Fuzzing: seeded malformed inputs for every parser of the system."""
