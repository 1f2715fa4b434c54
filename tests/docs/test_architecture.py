"""docs/architecture.md names code that exists and draws the states that the code has."""

import re
from enum import Enum
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest

from voicefleet.schemas.audio import Reason
from voicefleet.worker.control.session_watch import Directive
from voicefleet.worker.intake import job_state
from voicefleet.worker.intake.job_state import DONE, DONE_BY, JobState
from voicefleet.worker.publish.outbox import PublishOutcome
from voicefleet.worker.store.lease_states import GRANTED, Claim, Standing
from voicefleet.worker.synthesis import turn
from voicefleet.worker.synthesis.turn import TurnState

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
(DIAGRAM,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
OUTER, INNER = DIAGRAM.split("state speaking {")
ARROW = re.compile(r"(\w+) --> (\w+)(?:: (.*))?")
NAMES = sorted(set(re.findall(r"`((?:schemas|wire|producer|worker)\.[\w.]+)`", TEXT)))


def arrows(drawn: str) -> dict[tuple[str, str], set[str]]:
    """From and to of each arrow, and the words at it; what is in parentheses is no such word."""
    found: dict[tuple[str, str], set[str]] = {}
    for before, after, words in ARROW.findall(drawn):
        assert (before, after) not in found
        found[before, after] = set() if words.startswith("(") else set(words.split(", "))
    return found


def of_code(transitions: dict[JobState, frozenset[JobState]]) -> set[tuple[str, str]]:
    return {(a.value, b.value) for a, after in transitions.items() for b in after}


@pytest.mark.parametrize("name", NAMES)
def test_what_it_names_exists(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = import_module(f"voicefleet.{'.'.join(parts[:length])}")
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return
    raise AssertionError(name)


def test_the_jobs_transitions_are_those_of_the_code() -> None:
    assert set(arrows(OUTER)) == of_code(job_state.TRANSITIONS)


def test_the_turns_transitions_are_those_of_the_code() -> None:
    drawn = {(a.value, b.value) for a, after in turn.TRANSITIONS.items() for b in after}
    assert set(arrows(INNER)) == drawn


def test_each_standing_leads_where_the_code_goes() -> None:
    waiting = JobState.WAITING.value
    drawn = {
        Standing(word): JobState(after)
        for (before, after), words in arrows(OUTER).items()
        if before == waiting
        for word in words
    }
    assert drawn == DONE_BY | dict.fromkeys(GRANTED, JobState.SPEAKING)
    assert set(Standing) == {*drawn, Standing.WAITING}


def test_each_outcome_leads_somewhere() -> None:
    after_speaking = [
        words for (before, _), words in arrows(OUTER).items() if before != JobState.WAITING.value
    ]
    assert {PublishOutcome(word) for word in chain(*after_speaking)} == set(PublishOutcome)


def test_every_directive_but_yield_moves_the_turn() -> None:
    assert {Directive(word) for word in chain(*arrows(INNER).values())} == set(Directive) - {
        Directive.YIELD
    }


@pytest.mark.parametrize(
    "states", [Claim, Standing, Directive, PublishOutcome, Reason, JobState, TurnState]
)
def test_the_table_of_words_is_complete(states: type[Enum]) -> None:
    name = "Reason" if states is Reason else states.__name__
    (row,) = re.findall(rf"^\|.*\.{name}` \| (.*) \|$", TEXT, re.MULTILINE)
    values = get_args(states) if states is Reason else [state.value for state in states]
    assert re.findall(r"`(\w+)`", row) == list(values)


def test_no_word_means_two_things() -> None:
    """But two: ``waiting`` is what the lease says and what the job then does, and a turn that was
    told to stop is ``stopped`` and ends so.
    """
    values = [
        state.value
        for states in (Claim, Standing, Directive, PublishOutcome, JobState, TurnState)
        for state in states
    ]
    values += get_args(Reason)
    twice = {value for value in values if values.count(value) > 1}
    assert twice == {"waiting", "stopped"}


def test_the_states_that_are_done_are_the_ends_of_the_diagram() -> None:
    ends = {after for (before, after) in arrows(OUTER)} - {b for (b, _) in arrows(OUTER)}
    assert {JobState(end) for end in ends} | {JobState.ANSWERED} == DONE
