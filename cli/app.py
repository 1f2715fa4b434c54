"""The commands as one app. A command that fails prints one line on stderr."""

import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from inspect import iscoroutinefunction
from typing import cast

import anyio
from cyclopts import App, CycloptsError

from voicefleet.cli import (
    capacity,
    control,
    dead,
    demo,
    doctor,
    inspect,
    say,
    signals,
    tail,
    up,
    voicepacks,
    voices,
    worker,
)
from voicefleet.cli.advice import advice

app = App(
    name="voicefleet",
    help="A fleet of workers that turn text into speech in real time, over Redis Streams.",
    version=lambda: version("voicefleet"),
    help_format="plaintext",
)
for command in (
    say.say,
    worker.worker,
    up.up,
    demo.demo,
    inspect.workers,
    inspect.models,
    inspect.sessions,
    dead.dead,
    tail.tail,
    control.pause,
    control.resume,
    control.stop,
    doctor.doctor,
    capacity.capacity,
):
    app.command(command)
app.command(voicepacks.app)
app.command(voices.app)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for a failure, 2 for wrong usage.

    Raises:
        signals.Interrupted: A signal ended it.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        # cyclopts explains wrong usage itself.
        command, bound, _ = app.parse_args(tokens, exit_on_error=False)
        call = partial(command, *bound.args, **bound.kwargs)
        if iscoroutinefunction(command):
            status = anyio.run(signals.cancelled_by_signals, call)
        else:
            status = call()
        sys.stdout.flush()
    except CycloptsError:
        return 2
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does. Python must not flush into it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in tokens:
            traceback.print_exc()
        else:
            print(f"voicefleet: {_message(error)}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0


def _message(error: BaseException) -> str:
    """The line to print: what is wrong, and what to do about it."""
    single = _single(error)
    problem = str(single).strip() or type(single).__name__
    remedy = advice(single)
    return f"{problem.rstrip('.')}; {remedy}" if remedy else problem


def _single(error: BaseException) -> BaseException:
    """The single error inside nested exception groups; a group of several as it is."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return _single(group.exceptions[0]) if len(group.exceptions) == 1 else group
    return error
