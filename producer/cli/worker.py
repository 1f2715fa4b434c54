"""``worker``: one worker process, in the foreground."""

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


async def worker(
    *,
    config: Path,
    redis_url: str | None = None,
    name: str | None = None,
    set: Annotated[tuple[str, ...], Parameter(negative="")] = (),  # noqa: A002 the option's name
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run a worker. SIGTERM or Ctrl-C drains it, a second one ends it at once.

    Parameters
    ----------
    config
        Its configuration, such as configs/piper.yaml.
    redis_url
        Also VOICEFLEET_REDIS_URL.
    name
        Unique in the fleet. Default: process id@host.
    set
        section.key=value, above file and environment. Any number of times.
    debug
        Show a traceback of errors.
    """
    # The client's commands do without the worker's side, and start faster so.
    from worker.configure import load  # noqa: PLC0415
    from worker.logs import configure  # noqa: PLC0415
    from worker.service import run, worker_name  # noqa: PLC0415

    flags = {"redis.url": redis_url, "worker.name": name, "logging.level": log_level}
    said = [f"{key}={value}" for key, value in flags.items() if value is not None]
    settings = load(config, environ=os.environ, overrides=(*set, *said))
    configure(settings.logging, worker=worker_name(settings))
    return await run(settings)
