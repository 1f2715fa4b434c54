"""Small fleets explored to exhaustion: the real scripts, every order, a fault at every step.

``python -m verify.model_check --help`` explores deeper.
"""

import re
from collections.abc import Generator

import pytest

from verify.model_check import fleets
from verify.model_check.breakages import BREAKAGES, Breakage
from verify.model_check.fleets import Faults, Fleet
from verify.model_check.search import Found, Search
from verify.model_check.server import Server
from verify.model_check.world import World
from voicefleet.embedded_server import EmbeddedServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # a ceiling against hangs alone

ONE, LONG, TWO, TWICE = fleets.ONE, fleets.LONG, fleets.TWO, fleets.TWICE
REJECTED, LATE, APART = fleets.REJECTED, fleets.LATE, fleets.APART

SOUND = [
    Fleet("long, killed, in parts", LONG, Faults(crashes=1), splits=True),
    Fleet("two, killed", TWO, Faults(crashes=1)),
    Fleet("two sessions, killed", APART, Faults(crashes=1)),
    Fleet("late, killed", LATE, Faults(crashes=1)),
    Fleet("sent twice, connection lost", TWICE, Faults(losses=1)),
    Fleet("rejected, connection lost", REJECTED, Faults(losses=1)),
    Fleet("killed, connection lost", ONE, Faults(crashes=1, losses=1)),
    Fleet("stalled, in parts", LONG, Faults(false_deaths=1), splits=True),
    Fleet("stalled, killed", ONE, Faults(false_deaths=1, crashes=1)),
    Fleet("two, engine fails", TWO, Faults(failures=1), max_deliveries=2),
    Fleet("engine fails for good", ONE, Faults(failures=2, losses=1), max_deliveries=2),
    Fleet("two, drained", TWO, Faults(drains=1)),
    Fleet("drained, killed", ONE, Faults(drains=1, crashes=1), workers=3),
    Fleet("failover", ONE, Faults(failovers=1)),
    Fleet("failover, killed", ONE, Faults(failovers=1, crashes=1)),
]


@pytest.fixture(scope="module")
def port() -> Generator[int]:
    """A server whose database is the explorer's alone."""
    with EmbeddedServer.start_blocking() as server:
        yield server.port


def explore(port: int, fleet: Fleet, patches: dict[str, str] | None = None) -> Found:
    with Server(port, patches) as server:
        return Search(World(fleet, server), most=300_000).run()


@pytest.mark.parametrize("fleet", SOUND, ids=lambda fleet: fleet.name)
def test_no_order_of_events_breaks_a_promise(port: int, fleet: Fleet) -> None:
    found = explore(port, fleet)
    print(f"{fleet.name}: {found}")
    assert not found.broken, str(found)
    assert found.exhausted
    assert found.executed > 20


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda b: re.sub(r"\W+", "-", b.what))
def test_a_broken_script_is_found_out(port: int, breakage: Breakage) -> None:
    found = explore(port, breakage.fleet, breakage.patches())
    assert found.broken, f"{breakage.what}: {found}"
    assert found.trace or not any(breakage.fleet.faults)
