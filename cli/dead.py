"""``dead``: requests that no worker may try again, and why."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final, cast

from cyclopts import Parameter
from cyclopts.validators import Number

from voicefleet.cli.inspect import now_ms
from voicefleet.cli.table import Json, age, print_json, print_table
from voicefleet.cli.target import DEFAULT, Target
from voicefleet.producer.client import VoiceFleet

PAGE: Final = 500
COLUMNS: Final = ("session", "request", "model", "worker", "reason", "error")


async def dead(
    *,
    count: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    session: str | None = None,
    as_json: Json = False,
    target: Target = DEFAULT,
) -> None:
    """List the newest requests that could not be spoken, from tts:dead. Texts are not kept there.

    Parameters
    ----------
    count
        At most so many, the newest first.
    session
        Only those of this session.
    """
    found: list[dict[str, str]] = []
    async with target.fleet() as fleet:
        async with aclosing(_newest_first(fleet)) as letters:
            async for letter in letters:
                if session is None or letter.get("session") == session:
                    found.append(letter)
                if len(found) == count:
                    break
        now = await now_ms(fleet)
    if as_json:
        print_json(found)
        return
    print_table(
        ("ago", *COLUMNS),
        (
            (age(int(letter["id"].partition("-")[0]), now), *map(letter.get, COLUMNS))
            for letter in found
        ),
    )


async def _newest_first(fleet: VoiceFleet) -> AsyncGenerator[dict[str, str]]:
    """The entries with their ids, as ``id``."""
    end = "+"
    while True:
        reply = await fleet.redis.call("XREVRANGE", fleet.keys.dead, end, "-", "COUNT", PAGE)
        page = cast(list[tuple[bytes, dict[bytes, bytes]]], reply)
        for entry, fields in page:
            letter = {
                name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()
            }
            yield {"id": entry.decode(), **letter}
        if len(page) < PAGE:
            return
        end = f"({page[-1][0].decode()}"
