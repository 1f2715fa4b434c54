"""Deliberate breakages of the scripts, each with a fleet small enough to notice it quickly.

An exploration that finds nothing proves little unless it finds these.
"""

from typing import NamedTuple

from verify.model_check import fleets
from verify.model_check.fleets import Faults, Fleet
from voicefleet.worker.store import scripts
from voicefleet.worker.store.scripts import Script


class Breakage(NamedTuple):
    """``old`` in a script's source becomes ``new``; ``fleet`` is where that is noticed."""

    what: str
    script: Script
    old: str
    new: str
    fleet: Fleet

    def patches(self) -> dict[str, str]:
        """The broken source by the script's name.

        Raises:
            ValueError: The script has changed, and this breakage with it.
        """
        if self.script.source.count(self.old) != 1:
            raise ValueError(f"{self.what}: not once in {self.script.name}.lua: {self.old}")
        return {self.script.name: self.script.source.replace(self.old, self.new)}


FENCE = "if standing < 0 then return standing end"
CRASH, STALL, DRAIN = Faults(crashes=1), Faults(burials=1), Faults(drains=1)
FAILOVER, LOSS = Faults(failovers=1), Faults(losses=1)

BREAKAGES = (
    Breakage(
        "append does not look at the epoch",
        *(scripts.APPEND, FENCE, ""),
        Fleet("long", fleets.LONG, STALL),
    ),
    Breakage(
        "append leaves gaps",
        *(scripts.APPEND, "if n > last + 1 then return last end", ""),
        Fleet("long", fleets.LONG, FAILOVER, splits=True),
    ),
    Breakage(
        "append does not skip what is there",
        *(scripts.APPEND, "if n > last then", "if true then"),
        Fleet("one", fleets.ONE, LOSS),
    ),
    Breakage(
        "finish does not look at the epoch",
        *(scripts.FINISH, FENCE, ""),
        Fleet("one", fleets.ONE, STALL),
    ),
    Breakage(
        "finish ends what is not whole",
        *(
            scripts.FINISH,
            "if last ~= n - 1 and not (n == 1 and last == -1) then return last end",
            "",
        ),
        Fleet("long", fleets.LONG, FAILOVER, splits=True),
    ),
    Breakage(
        "finish leaves the lease active",
        *(scripts.FINISH, "redis.call('HSET', KEYS[1], 'active', '0')", ""),
        Fleet("one", fleets.ONE, Faults()),
    ),
    Breakage(
        "acquire ignores requests that stand before",
        *(
            scripts.ACQUIRE,
            "if name == unended or not redis.call('ZSCORE', spoken, name)",
            "if false",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "acquire does not mind a turn that is spoken",
        *(
            scripts.ACQUIRE,
            "if held[1] == '1' then\n",
            "if held[1] == '1' and held[2] == entry then\n",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "acquire does not know names",
        *(
            scripts.ACQUIRE,
            "if spoken_as and (claim ~= 'regain'",
            "if false and (claim ~= 'regain'",
        ),
        Fleet("twice", fleets.TWICE, Faults()),
    ),
    Breakage(
        "acquire lets owners share an epoch",
        *(
            scripts.ACQUIRE,
            "epoch = string.format('%.0f', epoch)",
            "epoch = held[5] or string.format('%.0f', epoch)",
        ),
        Fleet("one", fleets.ONE, STALL),
    ),
    Breakage(
        "acquire leaves the place of who speaks",
        *(
            scripts.ACQUIRE,
            "redis.call('HDEL', lease, waiter)\n  redis.call('ZADD', spoken, turn, request)",
            "redis.call('ZADD', spoken, turn, request)",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "release counts against who is blameless",
        *(scripts.RELEASE, "if ARGV[2] == '1'", "if false"),
        Fleet("one", fleets.ONE, DRAIN, max_deliveries=1),
    ),
    Breakage(
        "a request handed back wakes nobody",
        *(scripts.ORPHAN, "if moved > 0 then", "if false then"),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "a request that waits is not listed",
        *(
            scripts.ENQUEUE,
            "redis.call('HSET', lease, waiter, (interrupts and '!' or '.') .. request)",
            "",
        ),
        Fleet("two", fleets.TWO, Faults()),
    ),
    Breakage(
        "take does not say that somebody had it before",
        *(scripts.TAKE, "return {'take_over', ", "return {'fresh', "),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "a burial takes the requests along",
        *(scripts.ORPHAN, "if #page == 0 then break end", "if true then break end"),
        Fleet("one", fleets.ONE, CRASH),
    ),
    Breakage(
        "settle does not look at the lease",
        *(scripts.SETTLE, "if held[1] == '1' and held[2]", "if false and held[2]"),
        Fleet("one", fleets.ONE, FAILOVER),
    ),
)
