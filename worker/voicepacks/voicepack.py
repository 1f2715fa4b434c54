"""Voicepacks: what models there are, and where their files lie.

A pack is a folder ``voicepacks/<family>/<name>/`` with a ``metadata.yaml``. Its files lie in the
folder itself or in an installed Python package.
"""

import difflib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import msgspec
import yaml
from msgspec import Meta

from voicefleet import installation
from voicefleet.schemas.fields import excerpt
from voicefleet.worker import plain_yaml
from voicefleet.worker.plain_yaml import PlainLoader

METADATA = "metadata.yaml"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
Names = tuple[Name, ...]


class VoicepackError(Exception):
    """A voicepack is not what it should be. The message names the file and says what is wrong."""


class HubFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a file before it is fetched. ``optional``: the hub may lack it."""

    size: Annotated[int, Meta(ge=0)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    optional: bool = False


Repository = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+$")]


class Hub(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where ``voicepacks fetch`` gets the files: ``owner/name`` on each hub that has them.

    ``revision`` is a branch, tag or commit; empty for the hub's default. ``files`` are the paths
    that serving needs, there and in the pack's folder.
    """

    huggingface: Repository | None = None
    modelscope: Repository | None = None
    revision: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_./\-]{0,128}$")] = ""
    files: Annotated[dict[str, HubFile], Meta(min_length=1)]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the files are: what an engine calls each (``model``, ``config``) -> relative path.

    Paths are relative to the pack's folder or, with ``package``, to where that installed
    distribution's files are. They cannot lead out of it. ``hub`` is where they can be fetched.
    """

    package: Name | None = None
    files: dict[str, str] = {}
    hub: Hub | None = None


class Targets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device that is meant for the model reaches with it: what measurements are held to.

    ``first_audio_ms`` is the 95th percentile at ``sessions`` side by side; ``rtf`` is compute time
    per second of audio.
    """

    first_audio_ms: Annotated[float, Meta(gt=0)] | None = None
    rtf: Annotated[float, Meta(gt=0)] | None = None
    sessions: Annotated[int, Meta(ge=1)] = 1


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reference recording of a voice and what is said in it, for engines that clone."""

    audio: str
    text: str = ""


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``metadata.yaml``.

    ``native_rate`` (Hz) and ``memory_mb`` are what the pack promises: the engine reads the rate
    from the model itself. ``calibration_text`` is spoken once to measure the voice's loudness: a
    few plain sentences, short enough for one segment. ``synthetic`` says that no voice was learned:
    a test signal, or random weights.
    """

    family: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$")]
    model_id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]
    version: str
    description: str = ""
    capabilities: Names = ()
    modes: Names = ()
    languages: Names
    tags: Names = ()
    native_rate: Annotated[int, Meta(ge=8_000, le=192_000)]
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    default_voice: Name | None = None
    voices: Names = ()
    prompts: dict[str, Prompt] = {}
    licence: str
    source: Source = Source()
    synthetic: bool = False
    targets: Targets | None = None
    calibration_text: Annotated[str, Meta(min_length=20, max_length=200)] = (
        "The birch canoe slid on the smooth planks, and the boy ran to meet it. "
        "Glue the sheet to the dark blue background."
    )


class Voicepack(Metadata, frozen=True, kw_only=True):
    """A voicepack and the folder it was read from."""

    directory: Path

    def file(self, role: str) -> Path:
        """Where the file that the engine calls ``role`` is.

        Raises:
            VoicepackError: The metadata names no such file, the package that holds it is not
                installed, or the file is not there.
        """
        relative = self.source.files.get(role)
        if relative is None:
            raise VoicepackError(f"{self.directory / METADATA}: source.files names no {role!r}")
        root = self.directory
        if self.source.package is not None:
            root = _package_root(self.source.package, self.model_id)
        path = root / relative
        if not path.is_file():
            raise VoicepackError(f"{self.model_id}: there is no {path}")
        return path


def read(directory: Path) -> Voicepack:
    """Read and validate one pack.

    Raises:
        VoicepackError: Its metadata cannot be read or is not valid.
    """
    path = directory / METADATA
    try:
        raw: object = yaml.load(plain_yaml.read(path), PlainLoader)  # noqa: S506 a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VoicepackError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise VoicepackError(f"{path}: is not a mapping of keys to values")
    fields = cast("dict[object, object]", raw)
    _refuse_unknown_keys(path, fields)
    try:
        metadata = msgspec.convert(fields, Metadata)
    except msgspec.ValidationError as error:
        raise VoicepackError(f"{path}: {error}") from None
    pack = Voicepack(**_shallow(metadata), directory=directory)
    if problem := _inconsistency(pack):
        raise VoicepackError(f"{path}: {problem}")
    return pack


def discover(directory: Path) -> dict[str, Voicepack]:
    """All packs below ``directory``, by model id.

    Raises:
        VoicepackError: There is no such folder, a pack is invalid, or two packs have one model
            id. All that is wrong is in the one message.
    """
    if not directory.is_dir():
        raise VoicepackError(f"there is no voicepacks folder {directory}")
    packs: dict[str, Voicepack] = {}
    problems: list[str] = []
    for path in folders(directory):
        try:
            pack = read(path)
        except VoicepackError as error:
            problems.append(str(error))
            continue
        other = packs.setdefault(pack.model_id, pack)
        if other is not pack:
            problems.append(
                f"{path / METADATA}: model_id {pack.model_id!r} is taken by {other.directory}"
            )
    if problems:
        raise VoicepackError("\n".join(problems))
    return packs


def folders(directory: Path) -> list[Path]:
    """The packs' folders below ``directory``, in order, whether they are valid or not."""
    return sorted(path.parent for path in directory.glob(f"*/*/{METADATA}"))


def missing(pack: Voicepack) -> list[str]:
    """Which of the files that the metadata names are not there, and what to do about it."""
    if not is_fetched(pack):
        return [f"{pack.model_id}: not fetched: run `voicefleet voicepacks fetch {pack.model_id}`"]
    findings: list[str] = []
    for role in pack.source.files:
        try:
            pack.file(role)
        except VoicepackError as error:
            findings.append(str(error))
    for name, prompt in pack.prompts.items():
        if not (pack.directory / prompt.audio).is_file():
            findings.append(f"{pack.model_id}: there is no recording for the prompt {name!r}")
    return findings


def is_fetched(pack: Voicepack) -> bool:
    """Whether anything is there of what a hub has of this pack; true where no hub has it."""
    hub = pack.source.hub
    return hub is None or any((pack.directory / path).is_file() for path in hub.files)


def default_directory(configured: str = "") -> Path:
    """The folder of voicepacks to use.

    The configured one; else ``./voicepacks`` here or in a folder above; else the packs that came
    with the installed worker; else those of the source tree the worker runs from.

    Raises:
        VoicepackError: There is none.
    """
    if configured:
        return Path(configured).expanduser()
    here = Path.cwd()
    around = (folder / "voicepacks" for folder in (here, *here.parents))
    for candidate in (*around, installation.shipped("voicepacks")):
        if folders(candidate):
            return candidate
    raise VoicepackError("there is no folder of voicepacks: set model_manager.voicepacks_dir")


def _refuse_unknown_keys(path: Path, fields: Mapping[object, object]) -> None:
    _refuse_unknown(path, fields, Metadata, "")
    source = fields.get("source")
    if isinstance(source, dict):
        parts = cast("dict[object, object]", source)
        _refuse_unknown(path, parts, Source, "source.")
        if isinstance(hub := parts.get("hub"), dict):
            _refuse_unknown(path, cast("dict[object, object]", hub), Hub, "source.hub.")


def _refuse_unknown(
    path: Path, fields: Iterable[object], kind: type[msgspec.Struct], prefix: str
) -> None:
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in fields:
        if key not in known:
            name = excerpt(str(key), 80)[1:-1]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(known)}"
            raise VoicepackError(f"{path}: unknown key {prefix + name!r}: {hint}")


def _shallow(metadata: Metadata) -> dict[str, Any]:
    return {f.name: getattr(metadata, f.name) for f in msgspec.structs.fields(Metadata)}


def _inconsistency(pack: Voicepack) -> str | None:
    """The first thing about valid fields that does not fit together."""
    family_folder = pack.directory.resolve().parent.name
    if not pack.model_id.startswith(f"{pack.family}-"):
        return f"model_id {pack.model_id!r} must begin with its family, {pack.family + '-'!r}"
    if family_folder != pack.family:
        return f"family {pack.family!r} lies in the folder of family {family_folder!r}"
    if pack.voices and pack.default_voice not in (None, *pack.voices):
        return f"default_voice {pack.default_voice!r} is not one of {', '.join(pack.voices)}"
    recordings = {f"prompts.{name}": prompt.audio for name, prompt in pack.prompts.items()}
    paths = {f"source.files.{role}": file for role, file in pack.source.files.items()}
    hub = pack.source.hub
    fetched = {f"source.hub.files.{file}": file for file in (hub.files if hub else ())}
    if hub is not None and hub.huggingface is None and hub.modelscope is None:
        return "source.hub names no repository: huggingface or modelscope"
    for key, relative in {**paths, **recordings, **fetched}.items():
        # Names in the metadata cannot lead out; where the operator's own links lead is theirs.
        if not is_inside(relative):
            return f"{key}: {relative!r} is not a relative path inside the pack"
    return None


def is_inside(relative: str) -> bool:
    """Whether a path from a file or a listing stays below the folder it is relative to."""
    parts = PurePosixPath(relative)
    odd = "\\" in relative or ":" in relative or "\0" in relative
    return bool(parts.name) and not odd and not parts.is_absolute() and ".." not in parts.parts


def _package_root(package: str, model_id: str) -> Path:
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        raise VoicepackError(
            f"{model_id}: the package {package!r} is not installed: pip install {package}"
        ) from None
