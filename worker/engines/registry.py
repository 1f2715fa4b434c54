"""The engine families there are: our own, and those of other installed packages.

A folder beside this module with a ``family.py`` is a family of our own. A package adds one with an
entry point of the group ``voicefleet.engines``, whose name is the family's and whose value says
where its ``EngineFamily`` is. What is not installed is never imported: a voicepack, a request or a
configuration only chooses among these names.
"""

import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from voicefleet.worker import engines
from voicefleet.worker.engines.family import EngineFamily, HostedSection
from voicefleet.worker.engines.protocol import CannotSpeakError, Engine
from voicefleet.worker.section import Section
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import Voicepack, VoicepackError

GROUP: Final = "voicefleet.engines"

FAMILIES: Final[dict[str, EngineFamily[Any]]] = {}
"""The families by name."""

BROKEN: Final[dict[str, str]] = {}
"""Families of other packages that cannot be used, by name: why not."""


class UnknownModelError(CannotSpeakError):
    """Nobody here speaks such a model. The message names the ones that can be had."""


def _own() -> Iterator[EngineFamily[Any]]:
    for folder in pkgutil.iter_modules(engines.__path__, f"{engines.__name__}."):
        module = f"{folder.name}.family"
        if folder.ispkg and find_spec(module) is not None:
            yield import_module(module).FAMILY


def _add(point: EntryPoint) -> None:
    """Take a family of another package, or remember why that is impossible."""
    package = point.dist.name if point.dist is not None else point.value
    try:
        loaded: object = point.load()
        if not isinstance(loaded, EngineFamily):
            raise TypeError(f"{point.value} is no EngineFamily")
        family = replace(cast("EngineFamily[Any]", loaded), package=package)
        if problem := _unfit(point, family):
            raise ValueError(problem)
        family.config()
    except Exception as error:  # whatever the other package raises: this worker may not need it
        problem = f"{type(error).__name__}: {error}"
        BROKEN[point.name] = f"the engine family {point.name} of {package} is broken: {problem}"
    else:
        FAMILIES[family.name] = family


def _unfit(point: EntryPoint, family: EngineFamily[Any]) -> str:
    if family.name != point.name:
        return f"its descriptor calls it {family.name}"
    if family.name in FAMILIES:
        return f"{FAMILIES[family.name].package} has a family of that name"
    others = (*FAMILIES.values(), family)
    variables = Counter(f"{f.name}_{key}" for f in others for key in f.config.__struct_fields__)
    if twice := [name for name, count in variables.items() if count > 1]:
        return f"{twice[0]} would be two settings in the environment"
    return ""


FAMILIES.update({family.name: family for family in _own()})
for _point in sorted(entry_points(group=GROUP)):
    _add(_point)


if TYPE_CHECKING:

    class EngineConfig(Section, frozen=True):
        """The families' sections: ``EngineConfig(tone=ToneConfig())``, ``config.engine.tone``."""

        def __init__(self, **sections: Section) -> None: ...
        def __getattr__(self, family: str) -> Any: ...

else:
    EngineConfig = msgspec.defstruct(
        "EngineConfig",
        [(family.name, family.config, family.config()) for family in FAMILIES.values()],
        bases=(Section,),
        module=__name__,
        kw_only=True,
    )

EngineFactory: TypeAlias = Callable[[Voicepack, EngineConfig], Engine]
"""Makes an engine for a pack, not loaded yet."""


def family_of(pack: Voicepack) -> EngineFamily[Any]:
    """The pack's family.

    Raises:
        UnknownModelError: No engine speaks models of this family.
    """
    family = FAMILIES.get(pack.family)
    if family is None:
        known = ", ".join(f"{name}-*" for name in sorted(FAMILIES))
        problem = BROKEN.get(pack.family, f"engines speak {known}")
        raise UnknownModelError(f"no engine speaks {pack.model_id!r}; {problem}")
    return family


def build(pack: Voicepack, config: EngineConfig) -> Engine:
    """An engine for the pack as a worker runs it, not loaded yet.

    Raises:
        UnknownModelError: No engine speaks models of this family.
        EngineLoadError: Something that the engine imports is not installed.
    """
    from voicefleet.worker.engines.hosting.engine import HostedEngine  # noqa: PLC0415

    family = family_of(pack)
    section = getattr(config, family.name)
    if family.core is None:
        return family.new_engine(pack, section)
    assert isinstance(section, HostedSection)
    return HostedEngine(
        pack,
        family.name,
        section,
        synthesis_timeout_s=section.synthesis_timeout_s,
        load_timeout_s=section.load_timeout_s,
    )


def build_in_process(pack: Voicepack, config: EngineConfig) -> Engine:
    """``build``, but in no other process than this, where profilers see it. Not for a worker."""
    from voicefleet.worker.engines.hosting.in_process import InProcessEngine  # noqa: PLC0415

    family = family_of(pack)
    if family.core is None:
        return build(pack, config)
    return InProcessEngine(pack, family.new_core, getattr(config, family.name))


def slots_of(pack: Voicepack, config: EngineConfig) -> int:
    """How many turns an engine of the pack speaks at once, by its configuration alone."""
    family = family_of(pack)
    return family.slots(getattr(config, family.name))


def check(pack: Voicepack) -> list[str]:
    """What stands in the way of loading the pack; empty where nothing does."""
    findings = voicepack.missing(pack)
    if not voicepack.is_fetched(pack):
        return findings
    try:
        findings += family_of(pack).check(pack)
    except (UnknownModelError, VoicepackError) as error:
        findings += [str(error)] if str(error) not in findings else []
    return findings
