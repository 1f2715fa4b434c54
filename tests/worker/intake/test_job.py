"""A job's states: which lead where, and what ending it early does in each."""

from itertools import product
from typing import Any, cast

import pytest

from voicefleet.worker.intake.job import Job
from voicefleet.worker.intake.job_state import DONE, TRANSITIONS, JobState
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.synthesis.turn import InvalidTransitionError

PATHS = {state: [state] for state in TRANSITIONS[JobState.WAITING]} | {JobState.WAITING: []}


def brought_to(state: JobState) -> Job:
    delivery = Delivery("m", "1-0", {}, Claim.FRESH)
    job = Job(cast(Any, None), delivery, None, cast(Any, None))
    for step in PATHS[state]:
        job._go(step)  # pyright: ignore[reportPrivateUsage]
    assert job.state is state
    return job


@pytest.mark.parametrize(("here", "there"), list(product(JobState, JobState)))
def test_only_the_transitions_of_the_table_are_made(here: JobState, there: JobState) -> None:
    job = brought_to(here)
    go = job._go  # pyright: ignore[reportPrivateUsage]
    if there in TRANSITIONS[here]:
        go(there)
        assert job.state is there
    else:
        with pytest.raises(InvalidTransitionError, match=f"{here.value} .* {there.value}"):
            go(there)
        assert job.state is here


@pytest.mark.parametrize("state", JobState)
def test_hand_over_ends_what_is_under_way(state: JobState) -> None:
    job, ended = brought_to(state), list[str]()
    job._end_early = lambda: ended.append("ended")  # pyright: ignore[reportPrivateUsage]
    job.hand_over()
    job.hand_over()
    if state in (JobState.WAITING, JobState.SPEAKING):
        assert (job.state, ended) == (JobState.HANDING_OVER, ["ended"])
    else:
        assert (job.state, ended) == (state, [])


@pytest.mark.parametrize("state", JobState)
def test_drop_ends_the_wait_alone(state: JobState) -> None:
    job, ended = brought_to(state), list[str]()
    job._end_early = lambda: ended.append("ended")  # pyright: ignore[reportPrivateUsage]
    job.drop()
    if state is JobState.WAITING:
        assert (job.state, ended) == (JobState.DROPPED, ["ended"])
    else:
        assert (job.state, ended) == (state, [])


@pytest.mark.parametrize("state", JobState)
def test_is_done_says_that_only_the_queue_entry_is_left(state: JobState) -> None:
    job = brought_to(state)
    assert job.is_done is (state in DONE)
    assert job.is_waiting is (state is JobState.WAITING)
