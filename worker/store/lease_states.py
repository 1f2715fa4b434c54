"""How a worker asks for a session's lease, and what the answer is: the words of the lease scripts.

They are ARGV and replies of ``acquire.lua``, ``enqueue.lua``, ``take.lua`` and ``adopt.lua``.
"""

from enum import StrEnum
from typing import Final


class Claim(StrEnum):
    """How a session's lease is asked for, on behalf of one request."""

    FRESH = "fresh"
    """Nobody has held the lease for this request yet."""
    TAKE_OVER = "take_over"
    """A worker that gave the request up, or died, may have held the lease for it."""
    REGAIN = "regain"
    """This worker held the lease until the server forgot it, after a failover for instance."""
    INQUIRE = "inquire"
    """This worker held the lease and lost it: only say who has it, and change nothing."""
    INQUIRE_ALIVE = "inquire_alive"
    """As ``INQUIRE``; and the attempt that this worker began did not kill it: uncount that."""


class Standing(StrEnum):
    """What the session says of one request, when its lease or a place in its line is asked for."""

    NEW = "new"
    """The lease is granted: speak the turn from its start."""
    TAKEN_OVER = "taken_over"
    """The lease is granted: continue the turn where its last owner stopped."""
    CRASH_SUSPECTED = "crash_suspected"
    """As ``TAKEN_OVER``, but the request may have killed its last owner, which published nothing.

    The attempt is not counted before it begins.
    """
    WAITING = "waiting"
    """The request has to wait: another turn is spoken, or comes before it."""
    HELD_ELSEWHERE = "held_elsewhere"
    """Another worker holds the lease for this very request."""
    ALREADY_ANSWERED = "already_answered"
    """A request of this name was answered in the session, or is being answered."""
    SESSION_FULL = "session_full"
    """Too many requests wait in the session: this one is answered as rejected, in its order."""


GRANTED: Final = frozenset({Standing.NEW, Standing.TAKEN_OVER, Standing.CRASH_SUSPECTED})
"""The standings that come with the lease."""
