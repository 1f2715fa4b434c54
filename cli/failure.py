"""A command that cannot do what it was asked to."""


class Failure(Exception):
    """``str(failure)`` is all that the user sees: what is wrong, and what to do about it."""
