"""The cores there are, by the name under which the worker asks its child for one.

Read in both processes. What a core imports, torch for one, is imported in the child alone.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import msgspec

from voicefleet.installation import install
from voicefleet.worker.config.sections import CosyVoice2Config
from voicefleet.worker.engines.hosting.core import CoreFactory
from voicefleet.worker.engines.protocol import EngineLoadError


class CoreSource(NamedTuple):
    """Where a core's factory is, ``module:attribute``, and the type of its configuration."""

    factory: str
    config: Any


CORES: Final[Mapping[str, CoreSource]] = {
    "cosyvoice2": CoreSource("voicefleet.worker.engines.cosyvoice2.core:build", CosyVoice2Config),
    "cosyvoice2-upstream": CoreSource(
        "voicefleet.worker.engines.cosyvoice2_upstream.core:build", CosyVoice2Config
    ),
}


def factory_of(core: str) -> CoreFactory:
    """The factory of a core, imported now.

    Names come from code, never from a request or a configuration: ``module:attribute`` is as good
    as a name of ``CORES``.

    Raises:
        EngineLoadError: There is no such core, or something that it needs is not installed.
    """
    source = CORES[core].factory if core in CORES else core
    module, colon, attribute = source.partition(":")
    if not colon:
        raise EngineLoadError(f"no engine is called {core!r}; there are {', '.join(CORES)}")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        missing = "" if error.name is None else error.name.partition(".")[0]
        remedy = f": {install('cosyvoice')}" if core in CORES else ""
        remedy = "" if missing == "worker" else remedy
        raise EngineLoadError(f"{core} cannot be imported{remedy} ({error})") from None


def config_of(core: str, builtins: dict[str, Any]) -> Any:
    """The core's configuration in its own type, from what crossed the socket."""
    return msgspec.convert(builtins, CORES[core].config) if core in CORES else builtins
