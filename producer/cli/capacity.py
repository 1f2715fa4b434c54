"""``capacity``: how many turns at once a model can speak on this device, and why."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from producer.cli.configs import locate


async def capacity(
    *,
    model: str,
    config: Path | None = None,
    set: Annotated[tuple[str, ...], Parameter(negative="")] = (),  # noqa: A002 the option's name
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Load a model, warm it up, and print what this device carries of it.

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
    # The client's commands do without the worker's side, and start faster so.
    from worker import alone  # noqa: PLC0415
    from worker.configure import load  # noqa: PLC0415

    served = (f"worker.models={model}", f"model_manager.default_model_id={model}")
    path = locate(config, f"{model.partition('-')[0]}.yaml")
    settings = load(path, environ=os.environ, overrides=(*set, *served))
    async with alone.loaded(alone.pack_of(settings), settings) as engine:
        await engine.warm_up(settings.model_manager.warmup_text)
        info = engine.info
    print(f"{model} on {info.device}: {info.slots} turns at once")
    rows = list(info.capacity)
    if (memory := info.memory) is not None:
        rows.append(("memory", f"{memory.used_mb:.0f} of {memory.total_mb:.0f} MiB used"))
        rows.append(("of a session", f"{memory.per_session_mb:.1f} MiB"))
        rows.append(("of a voice", f"{memory.per_voice_mb:.1f} MiB"))
    for name, value in rows:
        print(f"  {name:<14} {value}")
