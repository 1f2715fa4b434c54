"""``capacity``: how many turns at once a model can speak on this device, and why."""

import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from voicefleet.cli.configs import locate
from voicefleet.cli.failure import require

if TYPE_CHECKING:
    from voicefleet.worker.local.load_trial import Trial


async def capacity(
    *,
    model: str,
    config: Path | None = None,
    set: Annotated[tuple[str, ...], Parameter(negative="")] = (),  # noqa: A002 the option's name
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Load a model, warm it up, and print how many turns this device speaks at once.

    An engine that does not measure itself when it is loaded is measured here for some seconds: as
    many turns as it has slots start together, and are spoken as fast as it can.

    Parameters
    ----------
    model
        A voicepack's id.
    config
        A worker's configuration. Default: the shipped one of the model's family.
    set
        section.key=value, above file and environment. Any number of times.
    debug
        Show a traceback of errors.
    """
    require("worker")
    from voicefleet.worker.config.loading import load  # noqa: PLC0415
    from voicefleet.worker.local import load_trial, standalone  # noqa: PLC0415

    served = (f"worker.models={model}", f"model_manager.default_model_id={model}")
    path = locate(config, f"{model.partition('-')[0]}.yaml")
    settings = load(path, environ=os.environ, overrides=(*set, *served))
    async with standalone.loaded(standalone.pack_of(settings), settings) as engine:
        await engine.warm_up(settings.model_manager.warmup_text)
        info = engine.info
        trial: Trial | None = None
        if not info.capacity:  # the engine has not measured itself
            print(f"measuring {model}: what else runs here counts", file=sys.stderr)
            trial = await load_trial.run(engine, info.slots)
    rows = list(info.capacity)
    if trial is None:
        print(f"{model} on {info.device}: {info.slots} turns at once")
    else:
        key = f"engine.{model.partition('-')[0]}.slots"
        print(f"{model} on {info.device}: {info.slots} turns at once, as {key} says")
        rows += _measured(info.slots, trial, key)
    if (memory := info.memory) is not None:
        rows.append(("memory", f"{memory.used_mb:.0f} of {memory.total_mb:.0f} MiB used"))
        rows.append(("of a session", f"{memory.per_session_mb:.1f} MiB"))
        rows.append(("of a voice", f"{memory.per_voice_mb:.1f} MiB"))
    for name, value in rows:
        print(f"  {name:<14} {value}")


def _measured(turns: int, trial: "Trial", key: str) -> Iterable[tuple[str, str]]:
    """The rows of a trial of so many turns: a name and a text each."""
    yield "speed", f"{trial.speed:.1f} s of audio a second, with {turns} turns at once"
    if trial.sustained < turns:
        yield (
            "",
            f"too slow for {turns} that speak all the time: lower {key} to {trial.sustained or 1}",
        )
    middle, last = (
        1000 * seconds
        for seconds in (statistics.median(trial.first_audio_s), trial.first_audio_s[-1])
    )
    yield (
        "first audio",
        f"p50 {middle:.0f} ms, the last {last:.0f} ms, of {turns} that start together",
    )
    middle, last = (
        1000 * seconds for seconds in (statistics.median(trial.silence_s), trial.silence_s[-1])
    )
    yield "silence", f"p50 {middle:.0f} ms, the longest {last:.0f} ms, in the first 10 s of these"
