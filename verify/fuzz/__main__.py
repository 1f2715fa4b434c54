"""``python -m verify.fuzz hunt TARGET SEED COUNT``, and ``replay TARGET SEED NUMBER``.

``run`` is what ``hunt`` starts as a process of its own.
"""

import sys
import tempfile
from pathlib import Path

from verify.fuzz import campaign
from verify.fuzz.targets import TARGETS, build


def main() -> int:
    """Run the command."""
    match sys.argv[1:]:
        case ["run", name, seed, first, count, progress]:
            campaign.run(name, int(seed), int(first), int(count), Path(progress))
        case ["hunt", names, seed, count]:
            for name in TARGETS if names == "all" else names.split(","):
                _hunt(name, int(seed), int(count))
        case ["replay", name, seed, number]:
            with tempfile.TemporaryDirectory() as scratch:
                target = build(name, Path(scratch))
                data = campaign.draw(target, name, int(seed), int(number))
                print(repr(data)[:4000])
                target.feed(data)
        case _:
            print(__doc__, "targets:", *TARGETS)
            return 2
    return 0


def _hunt(name: str, seed: int, count: int) -> None:
    report = campaign.hunt(name, seed=seed, count=count)
    print(
        f"{name}: {report.inputs} inputs, {report.taken} taken, {report.refused} refused, "
        f"+{report.growth_mb:.0f} MB, slowest {report.slowest_ms:.0f} ms (#{report.slowest})"
    )
    for find in report.finds:
        print(f"  #{find.number} {find.what} {find.place}: {find.detail}")


if __name__ == "__main__":
    sys.exit(main())
