"""``python -m verify.model_check [FLEET...] [--crashes 1 ...]``: explore deeper than the tests."""

import argparse
import sys

from verify.model_check import fleets
from verify.model_check.fleets import Faults, Fleet, Request
from verify.model_check.search import Search
from verify.model_check.server import Server
from verify.model_check.world import World
from voicefleet.embedded_server import EmbeddedServer

FLEETS: dict[str, tuple[Request, ...]] = {
    name.lower(): value
    for name, value in vars(fleets).items()
    if isinstance(value, tuple) and value and isinstance(value[0], Request)
}


def main() -> int:
    """Explore the named fleets; returns whether any invariant was broken."""
    parser = argparse.ArgumentParser(prog="verify.model_check")
    parser.add_argument("fleets", nargs="*", choices=[*FLEETS, []], default=["one"])
    for fault in Faults._fields:
        parser.add_argument(f"--{fault}", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--max-deliveries", type=int, default=3)
    parser.add_argument("--splits", action="store_true", help="send turns in several parts too")
    parser.add_argument("--most", type=int, default=10_000_000, help="explore so many states")
    parser.add_argument("--ignore-record", action="store_true")
    parser.add_argument("--no-reconcile", action="store_true")
    args = parser.parse_args()
    broken = False
    with EmbeddedServer.start_blocking() as server:
        for name in args.fleets:
            faults = Faults(**{fault: getattr(args, fault) for fault in Faults._fields})
            fleet = Fleet(
                name,
                FLEETS[name],
                faults,
                args.workers,
                args.slots,
                args.max_deliveries,
                args.splits,
                not args.ignore_record,
                not args.no_reconcile,
            )
            with Server(server.port) as scripts:
                world = World(fleet, scripts)
                found = Search(world, args.most).run()
            print(f"{name}: {found}", flush=True)
            broken |= bool(found.broken)
    return broken


if __name__ == "__main__":
    sys.exit(main())
