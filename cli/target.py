"""Which Redis a command talks to: the options that all commands share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cyclopts import Parameter

from voicefleet.cli.failure import Failure
from voicefleet.producer.client import VoiceFleet
from voicefleet.wire.endpoint import RedisConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Options of every command that talks to the fleet.

    Credentials and certificates come from the environment: ``VOICEFLEET_REDIS_PASSWORD`` and so
    on, the names of the ``redis`` section of a worker's configuration.
    """

    redis_url: Annotated[str | None, Parameter(help="Also VOICEFLEET_REDIS_URL.")] = None
    prefix: Annotated[str | None, Parameter(help="Also VOICEFLEET_REDIS_PREFIX.")] = None
    debug: Annotated[bool, Parameter(negative="", help="Show a traceback.")] = False

    def config(self, environ: Mapping[str, str] = os.environ) -> RedisConfig:
        """The ``redis`` section: options, then environment, then defaults."""
        settings = {
            field.name: environ[variable]
            for field in msgspec.structs.fields(RedisConfig)
            if (variable := f"VOICEFLEET_REDIS_{field.name.upper()}") in environ
        }
        options = {"url": self.redis_url, "prefix": self.prefix}
        settings |= {name: value for name, value in options.items() if value is not None}
        try:
            return msgspec.convert(settings, RedisConfig, strict=False)
        except msgspec.ValidationError as error:
            raise Failure(_explained(error, settings)) from None

    def fleet(self) -> VoiceFleet:
        """A client; enter it with ``async with``."""
        return VoiceFleet(self.config())


def _explained(error: msgspec.ValidationError, settings: Mapping[str, object]) -> str:
    """The message about a bad setting, with the variable and the option that set it."""
    what, _, name = str(error).partition(" - at `$.")
    name = name.rstrip("`")
    variable = f"VOICEFLEET_REDIS_{name.upper()}"
    if name == "prefix":
        return (
            f"the prefix {settings[name]!r} cannot be one: give --prefix or {variable} "
            "1 to 64 of A-Z a-z 0-9 _ . : -"
        )
    return f"{variable}: {what}"


DEFAULT = Target()
