"""What checks the fleet beyond its tests: faults, every order of steps, and malformed input."""
