"""The states of a job: a request's life in one worker's hands. docs/architecture.md draws them."""

from enum import Enum
from typing import Final

from voicefleet.worker.store.lease_states import Standing


class JobState(Enum):
    """What a worker does with one request; from ``ANSWERED`` on, what became of it here."""

    WAITING = "waiting"
    """Reads the request, asks for its session's lease, or waits for its turn in the session."""
    SPEAKING = "speaking"
    """Holds the session's lease and publishes the turn."""
    HANDING_OVER = "handing_over"
    """Was told to leave the request to another worker, and ends what it is doing."""
    ANSWERED = "answered"
    """The session has its answer: the request's queue entry is to be deleted."""
    UNANSWERABLE = "unanswerable"
    """No answer can be given; a dead letter says why: the queue entry is to be deleted."""
    HANDED_BACK = "handed_back"
    """Any worker may take the request: its queue entry goes to the orphans."""
    DROPPED = "dropped"
    """Another worker has the request: nothing is left to do."""


DONE: Final = frozenset(
    {JobState.ANSWERED, JobState.UNANSWERABLE, JobState.HANDED_BACK, JobState.DROPPED}
)
"""The states in which only the queue entry is left to deal with."""

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.WAITING: frozenset({JobState.SPEAKING, JobState.HANDING_OVER}) | DONE,
    JobState.SPEAKING: frozenset({JobState.WAITING, JobState.HANDING_OVER}) | DONE,
    JobState.HANDING_OVER: DONE,
    JobState.ANSWERED: frozenset({JobState.HANDED_BACK}),
    JobState.UNANSWERABLE: frozenset(),
    JobState.HANDED_BACK: frozenset(),
    JobState.DROPPED: frozenset(),
}
"""The states that each state may lead to.

``ANSWERED`` leads to ``HANDED_BACK`` where a failover made the server forget the answer.
"""

DONE_BY: Final[dict[Standing, JobState]] = {
    Standing.HELD_ELSEWHERE: JobState.DROPPED,
    Standing.ALREADY_ANSWERED: JobState.ANSWERED,
    Standing.SESSION_FULL: JobState.ANSWERED,
}
"""The standings with which a worker neither speaks a request nor waits, and where each leads."""
