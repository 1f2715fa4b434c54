"""Injects a schedule's faults one at a time and writes each to the journal."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from redis.exceptions import RedisError

from verify.chaos import servers
from verify.chaos.fault_report import FaultReport
from verify.chaos.faults import clients, failover, network, readers, resharding, server, workers
from verify.chaos.journal import Fault
from verify.chaos.schedule import RECOVERY_S, Injection, Schedule
from verify.chaos.world import CannotInjectError, World

LIMIT_S: Final = 90.0
"""No fault takes longer, including the recovery of its servers."""

Inject = Callable[[World, Injection], Awaitable[FaultReport]]

INJECTS: Final[dict[str, Inject]] = {
    "worker_kill": workers.kill,
    "worker_kill_two": workers.kill_two,
    "worker_stop": workers.stop,
    "worker_drain": workers.drain,
    "drain_all_but_one": workers.drain_all_but_one,
    "clock_jump": workers.clock_jump,
    "client_kill": clients.kill,
    "client_pause": clients.pause,
    "script_flush": clients.script_flush,
    "slow_server": clients.slow_server,
    "server_full": clients.server_full,
    "control_flood": clients.flood_control,
    "slow_reader": readers.slow,
    "dead_reader": readers.dead,
    "late_reader": readers.late,
    "server_kill": server.kill,
    "server_empty": server.empty,
    "flushall": server.flushall,
    "disk_full": server.disk_full,
    "net_delay": network.delay,
    "net_loss": network.loss,
    "net_half_open": network.half_open,
    "net_partition": network.partition,
    "primary_kill": failover.kill,
    "lost_tail": failover.lost_tail,
    "primary_stop": failover.stop,
    "manual_failover": failover.manual,
    "slot_migration": resharding.migrate,
}


ELECTION_S: Final = 3.0
"""Within so many seconds Sentinels or Cluster nodes have replaced a missing primary."""


class Injector:
    """Runs one schedule. ``say`` gets a line per fault; ``findings`` are faults that failed."""

    def __init__(self, world: World, schedule: Schedule, say: Callable[[str], None]) -> None:
        self._world = world
        self._schedule = schedule
        self._say = say
        self._recovery_s = RECOVERY_S
        self.findings: list[str] = []

    async def run(self) -> None:
        """Inject all, each at its time, but not before the previous one's recovery."""
        began = time.monotonic()
        free_at = began
        for injection in self._schedule.injections:
            due = max(began + injection.at_s, free_at)
            await anyio.sleep(max(0.0, due - time.monotonic()))
            await self._world.all_ready()
            # A fault that has begun is completed: a run that ends during one shows little.
            with anyio.CancelScope(shield=True):
                fault = await self._inject(injection)
                self._world.journal.write(fault)
                self._world.journal.flush()
                self._say(_line(fault, began))
            free_at = time.monotonic() + self._recovery_s

    async def _inject(self, injection: Injection) -> Fault:
        world = self._world
        at = time.monotonic()
        report, skipped = FaultReport(), ""
        try:
            with anyio.fail_after(LIMIT_S):
                before = await world.servers.primaries()
                report = await INJECTS[injection.kind](world, injection)
                until = report.until or time.monotonic()
                if world.servers.topology != "standalone":
                    # A silent primary may have been replaced: that takes a while to show.
                    await anyio.sleep(ELECTION_S)
                await servers.settled(world.servers)
                changed = await world.servers.primaries() != before
                if changed and report.until is None:
                    until = time.monotonic()
        except CannotInjectError as error:
            skipped, until, changed = str(error), time.monotonic(), False
        except (RedisError, OSError, LookupError, RuntimeError, TimeoutError) as error:
            until, changed = time.monotonic(), True
            self.findings.append(f"{injection.kind}: {type(error).__name__}: {error}")
        return Fault(
            at=at,
            until=until,
            kind=injection.kind,
            target=report.target,
            forgets=report.forgets or ("tail" if changed else "nothing"),
            note=report.note,
            skipped=skipped,
        )


def _line(fault: Fault, began: float) -> str:
    words = [
        f"{fault.at - began:6.1f} s  {fault.kind:<18}",
        f"{fault.until - fault.at:5.1f} s",
        fault.target,
        fault.note,
        f"forgets {fault.forgets}" if fault.forgets != "nothing" else "",
        f"skipped: {fault.skipped}" if fault.skipped else "",
    ]
    return "  ".join(word for word in words if word)
