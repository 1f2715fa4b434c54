"""An engine family's descriptor: all that the rest of the worker knows about its engines.

Every worker imports the descriptors of all families, whichever it serves. A module with a
descriptor therefore imports its engine, and what the engine needs, inside functions.
"""

import keyword
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from msgspec import Meta

from voicefleet.installation import install
from voicefleet.worker.engines.hosting.core import Core, Emit
from voicefleet.worker.engines.protocol import Engine, EngineLoadError
from voicefleet.worker.section import Seconds, Section
from voicefleet.worker.voicepacks.voicepack import Voicepack


class HostedSection(Section, frozen=True):
    """A section of a family whose engines run in processes of their own.

    A process that is silent for ``synthesis_timeout_s`` counts as hung and is replaced;
    ``load_timeout_s`` limits its load, and its warm-up.
    """

    synthesis_timeout_s: Annotated[float, Meta(ge=1)] = 5.0
    load_timeout_s: Seconds = 120.0


ConfigT = TypeVar("ConfigT", bound=Section)


def _nothing(_: object) -> tuple[()]:
    return ()


@dataclass(frozen=True, kw_only=True)
class EngineFamily(Generic[ConfigT]):
    """What a family is called, how it is configured, and how its engines are made.

    Attributes:
        name: The ``family`` of its voicepacks, and of its section ``engine.<name>``.
        config: The section's type. Every key needs a default.
        slots: How many turns an engine speaks at once by its configuration. Counts until the
            engine is loaded: then ``EngineInfo.slots`` does.
        engine: Makes an engine that runs in the worker's process, not loaded yet.
        core: In place of ``engine``: makes a core, which runs in a process of its own. ``config``
            is a ``HostedSection`` then.
        contradictions: Yields ``(key, problem)`` for values that are allowed one by one but not
            together.
        check: Yields what stands in the way of loading a voicepack, beyond files that
            ``source.files`` names and that are not there. May raise ``VoicepackError``.
        requires: The installed distributions without which it cannot speak.
        extra: The extra of ``package`` that installs them, where there is one.
        package: The distribution that brings the family. Filled in for those of other packages.

    Raises:
        ValueError, TypeError: The descriptor contradicts itself.
    """

    name: str
    config: type[ConfigT]
    slots: Callable[[ConfigT], int]
    engine: Callable[[Voicepack, ConfigT], Engine] | None = None
    core: Callable[[Voicepack, ConfigT, Emit], Core] | None = None
    contradictions: Callable[[ConfigT], Iterable[tuple[str, str]]] = _nothing
    check: Callable[[Voicepack], Iterable[str]] = _nothing
    requires: tuple[str, ...] = ()
    extra: str = ""
    package: str = "voicefleet"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name) or keyword.iskeyword(self.name):
            raise ValueError(f"{self.name!r} is no name of a family: a-z, 0-9 and _, at most 32")
        if (self.engine is None) is (self.core is None):
            raise ValueError(f"{self.name}: needs either an engine or a core")
        base = Section if self.core is None else HostedSection
        if base not in self.config.__mro__:
            raise TypeError(f"{self.name}: its config is no {base.__name__}")

    def new_engine(self, pack: Voicepack, config: ConfigT) -> Engine:
        """An engine that runs in this process, not loaded yet.

        Raises:
            EngineLoadError: Something that it imports is not installed.
        """
        assert self.engine is not None
        try:
            return self.engine(pack, config)
        except ImportError as error:
            raise self._not_installed(error) from None

    def new_core(self, pack: Voicepack, config: ConfigT, emit: Emit) -> Core:
        """A core, not loaded yet.

        Raises:
            EngineLoadError: Something that it imports is not installed.
        """
        assert self.core is not None
        try:
            return self.core(pack, config, emit)
        except ImportError as error:
            raise self._not_installed(error) from None

    def _not_installed(self, error: ImportError) -> EngineLoadError:
        remedy = f": {install(self.extra, package=self.package)}" if self.extra else ""
        return EngineLoadError(f"{self.name} cannot be imported{remedy} ({error})")
