"""A command that cannot do what it was asked to do."""

from voicefleet.installation import install, missing


class Failure(Exception):
    """``str(failure)`` is all that the user sees: what is wrong, and what to do about it."""


def require(*extras: str) -> None:
    """Check that what a command needs is installed.

    Raises:
        Failure: Some of the extras are missing. It says how to install them.
    """
    if lacking := missing(*extras):
        names = " and ".join(lacking)
        noun = "extra" if len(lacking) == 1 else "extras"
        raise Failure(f"this needs the {names} {noun}: {install(*lacking)}")
