"""Deliberate breakages of the scripts, each with a small fleet that shows it quickly.

An exploration that finds no fault proves little unless it finds these.
"""

from typing import Any, NamedTuple

from verify.model_check import fleets
from verify.model_check.fleets import Faults, Fleet
from voicefleet.worker.store.scripts.queue import Orphan, Settle, Take
from voicefleet.worker.store.scripts.script import Call
from voicefleet.worker.store.scripts.session import Acquire, Append, Enqueue, Finish, Release


class Breakage(NamedTuple):
    """``old`` in a script's source becomes ``new``; ``fleet`` is the one that shows it."""

    what: str
    call: type[Call[Any]]
    old: str
    new: str
    fleet: Fleet

    def patches(self) -> dict[str, str]:
        """The broken source by the script's name.

        Raises:
            ValueError: The script has changed: change the breakage too.
        """
        script = self.call.script
        if script.source.count(self.old) != 1:
            raise ValueError(f"{self.what}: not once in {script.name}.lua: {self.old}")
        return {script.name: script.source.replace(self.old, self.new)}


FENCE = "if standing < 0 then return standing end"
CRASH, STALL, DRAIN = Faults(crashes=1), Faults(false_deaths=1), Faults(drains=1)
FAILOVER, LOSS = Faults(failovers=1), Faults(losses=1)

BREAKAGES = (
    Breakage(
        "append does not compare the epoch",
        *(Append, FENCE, ""),
        Fleet("long", fleets.LONG, STALL),
    ),
    Breakage(
        "append accepts a gap",
        *(Append, "if n > last + 1 then return last end", ""),
        Fleet("long", fleets.LONG, FAILOVER, splits=True),
    ),
    Breakage(
        "append does not skip entries that are there",
        *(Append, "if n > last then", "if true then"),
        Fleet("one", fleets.ONE, LOSS),
    ),
    Breakage(
        "finish does not compare the epoch",
        *(Finish, FENCE, ""),
        Fleet("one", fleets.ONE, STALL),
    ),
    Breakage(
        "finish ends a turn whose entries are missing",
        *(
            Finish,
            "if last ~= n - 1 and not (n == 1 and last == -1) then return last end",
            "",
        ),
        Fleet("long", fleets.LONG, FAILOVER, splits=True),
    ),
    Breakage(
        "finish leaves the lease active",
        *(Finish, "redis.call('HSET', KEYS[1], 'active', '0')", ""),
        Fleet("one", fleets.ONE, Faults()),
    ),
    Breakage(
        "acquire ignores requests that were added before",
        *(
            Acquire,
            "if name == unended or not redis.call('ZSCORE', spoken, name)",
            "if false",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "acquire grants the lease during another turn",
        *(
            Acquire,
            "if held[1] == '1' then\n",
            "if held[1] == '1' and held[2] == entry then\n",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "acquire does not compare names",
        *(
            Acquire,
            "if spoken_as and (claim ~= 'regain'",
            "if false and (claim ~= 'regain'",
        ),
        Fleet("twice", fleets.TWICE, Faults()),
    ),
    Breakage(
        "acquire lets owners share an epoch",
        *(
            Acquire,
            "epoch = string.format('%.0f', epoch)",
            "epoch = held[5] or string.format('%.0f', epoch)",
        ),
        Fleet("one", fleets.ONE, STALL),
    ),
    Breakage(
        "acquire leaves the granted request on the list of waiters",
        *(
            Acquire,
            "redis.call('HDEL', lease, waiter)\n  redis.call('ZADD', spoken, turn, request)",
            "redis.call('ZADD', spoken, turn, request)",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "release counts a blameless attempt",
        *(Release, "if ARGV[2] == '1'", "if false"),
        Fleet("one", fleets.ONE, DRAIN, max_deliveries=1),
    ),
    Breakage(
        "a request handed back wakes nobody",
        *(Orphan, "if moved > 0 then", "if false then"),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "enqueue does not list the request",
        *(
            Enqueue,
            "redis.call('HSET', lease, waiter, (interrupts and '!' or '.') .. request)",
            "",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "take does not say that another worker had the request",
        *(Take, "return {'take_over', ", "return {'fresh', "),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "handing back the requests of a dead worker moves none",
        *(Orphan, "if #page == 0 then break end", "if true then break end"),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "settle does not read the lease",
        *(Settle, "if held[1] == '1' and held[2]", "if false and held[2]"),
        Fleet("one", fleets.ONE, FAILOVER),
    ),
)
