"""Which core a child runs, by the name that its worker sends: read in the child alone."""

from importlib import import_module
from typing import Any

import msgspec

from voicefleet.worker.engines.hosting.core import CoreFactory
from voicefleet.worker.engines.protocol import EngineLoadError
from voicefleet.worker.engines.registry import FAMILIES


def factory_of(core: str) -> CoreFactory:
    """The factory of a core: of a family, by its name, or whatever ``module:attribute`` says.

    Names come from code, never from a request, a voicepack or a configuration.

    Raises:
        EngineLoadError: There is no such core, or it cannot be imported. Calling the factory may
            raise it too.
    """
    if core in FAMILIES:
        return FAMILIES[core].new_core
    module, colon, attribute = core.partition(":")
    if not colon:
        known = ", ".join(name for name, family in FAMILIES.items() if family.core is not None)
        raise EngineLoadError(f"no engine is called {core!r}; there are {known}")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise EngineLoadError(f"{core} cannot be imported ({error})") from None


def config_of(core: str, builtins: dict[str, Any]) -> Any:
    """The core's configuration in its family's own type, from what crossed the socket."""
    return msgspec.convert(builtins, FAMILIES[core].config) if core in FAMILIES else builtins
