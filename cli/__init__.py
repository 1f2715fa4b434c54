"""The ``voicefleet`` command line. Importing it imports no command: ``main`` does that."""

from collections.abc import Sequence

from voicefleet.cli import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of ``sys.argv``.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong usage, 128 and the number of the signal
        that ended it.
    """
    signals.end_at_once()
    from voicefleet.cli.app import run  # noqa: PLC0415 takes a moment, in which Ctrl-C is quiet

    signals.end_in_order()
    try:
        return run(argv)
    except signals.Interrupted as interrupted:
        return interrupted.status
    finally:
        signals.end_at_once()
