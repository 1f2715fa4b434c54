"""``up``: a fleet of one on this machine, for development."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from voicefleet.cli.configs import locate
from voicefleet.cli.failure import Failure, require
from voicefleet.cli.worker_process import WorkerProcess
from voicefleet.embedded_server import EmbeddedServer, PortInUseError, ServerStartError
from voicefleet.producer.client import VoiceFleet


def default_model(config: Path) -> str:
    """The default model of a worker with this configuration."""
    from voicefleet.worker.config.loading import load  # noqa: PLC0415

    read = load(config, environ={})
    models = [read.model_manager.default_model_id, *read.worker.models]
    for model in models:
        if model:
            return model
    raise Failure(f"{config} serves no model")


def redis_cli(port: int, model: str) -> str:
    """Commands that speak a text with redis-cli alone."""
    return f"""\
  redis-cli -p {port} XADD tts:requests:{model} '*' session s1 text 'Hello from the fleet.'
  redis-cli -p {port} XREAD BLOCK 2000 COUNT 1 STREAMS 'tts:audio:{{s1}}' 0-0
  redis-cli -p {port} XLEN 'tts:audio:{{s1}}'
  redis-cli -p {port} XREVRANGE 'tts:audio:{{s1}}' + - COUNT 1
  redis-cli -p {port} HGETALL 'tts:session:{{s1}}'"""


async def up(
    *,
    config: Path | None = None,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65_535))] = 0,
    debug: bool = False,
) -> None:
    """Run an embedded Valkey and a worker until Ctrl-C; keep nothing.

    Parameters
    ----------
    config
        The worker's configuration. Default: configs/piper.yaml.
    port
        The server's port. Default: a free one.
    debug
        Show a traceback of errors.
    """
    require("embedded", "worker" if config else "piper")
    path = locate(config, "piper.yaml")
    model = default_model(path)
    try:
        async with (
            EmbeddedServer.start(port=port) as server,
            WorkerProcess.start(path, server.url, name="up") as worker,
            VoiceFleet(server.url) as fleet,
        ):
            await worker.ready(fleet)
            print(f"""\
{model} is served at {server.url} (Ctrl-C ends it)

  export VOICEFLEET_REDIS_URL={server.url}
  voicefleet say 'Hello from the fleet.' --out hello.wav

or with nothing but redis-cli:

{redis_cli(server.port, model)}
""", flush=True)  # fmt: skip
            await worker.ended()
    except PortInUseError as error:
        raise Failure(f"{error}: choose another --port, or leave it out for a free one") from None
    except ServerStartError as error:
        raise Failure(str(error)) from None
