"""Runs a fleet under injected faults and checks what its clients received."""
