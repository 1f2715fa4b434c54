"""Checks beyond the tests: fault injection, exploration of step orders, fuzzing."""
