"""Loads a worker's configuration: file, then environment, then flags; the later one wins.

=========== ===================================== ===========================
source      form                                  example
=========== ===================================== ===========================
file        YAML, a mapping for each section      ``worker: {slots: 4}``
environment ``VOICEFLEET_<SECTION>_<KEY>``        ``VOICEFLEET_WORKER_SLOTS=4``
flag        ``<section>.<key>=<value>``           ``--set worker.slots=4``
=========== ===================================== ===========================

In the environment and in flags a list is written with commas. A relative path in the file is
relative to the file, elsewhere to the working directory. Anything unknown is refused.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml
from msgspec import inspect

from voicefleet.schemas.fields import MODEL, excerpt
from voicefleet.schemas.keys import BACKLOG, ORPHANS
from voicefleet.wire.endpoint import BadUrlError, parse
from voicefleet.worker import plain_yaml
from voicefleet.worker.config.sections import Config
from voicefleet.worker.engines import registry
from voicefleet.worker.plain_yaml import PlainLoader

ENVIRONMENT_PREFIX: Final = "VOICEFLEET_"
TEST_PREFIX: Final = "VOICEFLEET_TEST_"

# A Kubernetes service called voicefleet-redis puts VOICEFLEET_REDIS_PORT=tcp://... into every pod.
_SERVICE_LINK: Final = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_WORKER_NAME: Final = re.compile(r"[A-Za-z0-9_.:@\-]{0,128}", re.ASCII)


NO_MODELS: Final = (
    "names no model, and a worker serves what it names: write `worker: {models: [piper-en-joe]}` "
    "into the file, set VOICEFLEET_WORKER_MODELS=piper-en-joe or say "
    "--set worker.models=piper-en-joe (`voicefleet voicepacks list` shows what there is)"
)


class ConfigError(ValueError):
    """A configuration that cannot be used.

    ``str(error)`` reads ``<source>: <key>: <problem>``: which file, variable or flag, which key
    in it, and what would be right there. No secret is ever part of it.
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        super().__init__(": ".join(part for part in (source, key, problem) if part))
        self.source = source
        self.key = key
        self.problem = problem


class Setting(NamedTuple):
    """One key's value, converted to the key's type, and where it was set."""

    key: str
    value: object
    source: str


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
    serving: bool = False,
) -> Config:
    """The configuration of a worker.

    Args:
        path: The YAML file; without one the defaults are the base.
        environ: The environment. ``VOICEFLEET_TEST_*`` belongs to the tests and is ignored.
        overrides: ``section.key=value``; if a key is there twice, the last one wins.
        serving: Refuse a configuration that names no model, with which a worker would do nothing.

    Raises:
        ConfigError: Something is unknown, not allowed, or contradicts something else.
    """
    settings: dict[str, Setting] = {}
    for found in (_from_file(path), _from_environment(environ), _from_flags(overrides)):
        settings |= {setting.key: setting for setting in found}
    config = _with_implied(msgspec.convert(_nested(settings.values()), Config))
    for key, problem in _contradictions(config):
        raise ConfigError(settings[key].source if key in settings else "", key, problem)
    if serving and not config.worker.models:
        named = settings.get("worker.models")
        source = named.source if named is not None else str(path or "")
        raise ConfigError(source, "worker.models", NO_MODELS)
    return config


def variable(key: str) -> str:
    """The environment variable of a key: ``worker.slots`` is ``VOICEFLEET_WORKER_SLOTS``."""
    return ENVIRONMENT_PREFIX + key.replace(".", "_").upper()


def _leaves(section: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.type


KEYS: Final[Mapping[str, Any]] = dict(_leaves(Config))
"""Every key with the type of its value: ``worker.slots``, ``engine.tone.rtf``, ..."""


def _marked(mark: str) -> Iterator[str]:
    """The keys whose types carry a mark, as ``Secret`` and ``FilePath`` do."""
    for key, kind in KEYS.items():
        info = inspect.type_info(kind)
        if isinstance(info, inspect.Metadata) and info.extra and mark in info.extra:
            yield key


SECRETS: Final = frozenset(_marked("secret"))
"""Keys whose values no error shows."""

PATHS: Final = frozenset(_marked("path"))
"""Keys that name a file or a directory."""

_SECTIONS: Final = frozenset(
    key[:at] for key in KEYS for at, character in enumerate(key) if character == "."
)
_VARIABLES: Final = {variable(key): key for key in KEYS}
_SECTION_VARIABLES: Final = tuple(f"{variable(section)}_" for section in _SECTIONS)


# --- The three sources -------------------------------------------------------------------------


def _from_file(path: Path | None) -> Iterator[Setting]:
    if path is None:
        return
    try:
        loader = PlainLoader(plain_yaml.read(path))
        root = loader.get_single_node()
        if root is not None:
            yield from _from_mapping(path, loader, root, "")
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        # What YAML quotes may be a password without quotation marks.
        problem = re.sub(r"(['\"]).*\1", "...", error.problem or "cannot be read")
        mark = error.problem_mark
        source = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(source, "", f"is not YAML: {problem}") from None
    except yaml.YAMLError:
        raise ConfigError(str(path), "", "is not YAML: it holds control characters") from None


def _from_mapping(
    path: Path, loader: PlainLoader, node: yaml.Node, prefix: str
) -> Iterator[Setting]:
    # Nodes, not plain dicts: they know their lines, and show a key that is there twice.
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.ScalarNode) and not node.value:
            return  # a section whose keys are all commented out
        problem = "is a section: its keys go below it" if prefix else "holds no sections"
        raise ConfigError(_at(path, node), prefix.rstrip("."), problem)
    seen: set[str] = set()
    for name_node, value_node in node.value:
        key, source = f"{prefix}{name_node.value}", _at(path, name_node)
        if key in seen:
            raise ConfigError(source, key, "is there twice")
        seen.add(key)
        if key in _SECTIONS:
            yield from _from_mapping(path, loader, value_node, f"{key}.")
        elif key in KEYS:
            value = loader.construct_object(value_node, deep=True)
            yield Setting(key, _checked(key, value, source, path.parent), source)
        else:
            raise _unknown(source, key, [*KEYS, *_SECTIONS])


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _from_environment(environ: Mapping[str, str]) -> Iterator[Setting]:
    for name, text in environ.items():
        key = _VARIABLES.get(name)
        if key is not None:
            yield Setting(key, _parsed(key, text, name), name)
        elif (
            name.startswith(_SECTION_VARIABLES)
            and not name.startswith(TEST_PREFIX)
            and not _SERVICE_LINK.fullmatch(name)
        ):
            raise _unknown("environment", name, _VARIABLES)


def _from_flags(overrides: Sequence[str]) -> Iterator[Setting]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[\w.\-]+", key):
            raise ConfigError("flag", "", "is not section.key=value")
        if key not in KEYS:
            raise _unknown("flag", key, KEYS)
        yield Setting(key, _parsed(key, text, "flag"), "flag")


# --- One value ---------------------------------------------------------------------------------


def _parsed(key: str, text: str, source: str) -> object:
    """A value from the environment or a flag, where everything is text."""
    if isinstance(inspect.type_info(KEYS[key]), inspect.VarTupleType):
        items = [item.strip() for item in text.split(",")]
        return _checked(key, [item for item in items if item], source, Path())
    return _checked(key, text, source, Path(), strict=False)


def _checked(key: str, value: object, source: str, base: Path, *, strict: bool = True) -> object:
    """The value in the key's type; a path becomes absolute, from ``base``."""
    try:
        converted = msgspec.convert(value, KEYS[key], strict=strict)
        if isinstance(converted, float) and not math.isfinite(converted):
            raise msgspec.ValidationError("not finite")
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: bytes that are no UTF-8
        absent = value is None or value == ""
        shown = "nothing" if absent else "the value" if key in SECRETS else excerpt(str(value))
        problem = f"{shown} is not {_allowed(inspect.type_info(KEYS[key]))}"
        raise ConfigError(source, key, problem) from None
    if key in PATHS and isinstance(converted, str) and converted:
        try:
            return str((base / Path(converted).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a NUL, a loop, ~nobody
            raise ConfigError(source, key, f"is no usable path: {error}") from None
    return converted


def _allowed(kind: inspect.Type) -> str:
    """The values a type allows, in words."""
    match kind:
        case inspect.Metadata():
            return _allowed(kind.type)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"an integer{_limits(kind)}"
        case inspect.FloatType():
            return f"a number{_limits(kind)}"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, kind.values))}"
        case inspect.VarTupleType():
            return "a list of names"
        case inspect.StrType(pattern=str(pattern)):
            return f"text that matches {pattern}"
        case _:
            return "text: put it in quotation marks"


def _limits(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    if kind.ge is not None:
        return f" of at least {kind.ge}"
    return f" above {kind.gt}" if kind.gt is not None else ""


def _unknown(source: str, name: str, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    for family in registry.BROKEN.keys() - registry.FAMILIES.keys():
        section = f"engine.{family}"
        if f"{name}.".startswith(f"{section}.") or name.startswith(f"{variable(section)}_"):
            return ConfigError(source, section, registry.BROKEN[family])
    last = name.rpartition(".")[2]
    elsewhere = [key for key in names if key.endswith(f".{last}")]
    near = difflib.get_close_matches(name, elsewhere or names, n=1, cutoff=0.0)
    # Only what can be a key: behind it, where a colon was forgotten, stands the value.
    shown = re.match(r"[\w.\-]{0,80}", name, re.ASCII)
    return ConfigError(source, shown[0] if shown else "", f"is unknown; nearest is {near[0]}")


# --- The whole ---------------------------------------------------------------------------------


def _nested(settings: Iterable[Setting]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for setting in settings:
        *sections, name = setting.key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = setting.value
    return root


def _with_implied(config: Config) -> Config:
    """With the default model served where no models are named."""
    default = config.model_manager.default_model_id
    if config.worker.models or not default:
        return config
    worker = msgspec.structs.replace(config.worker, models=(default,))
    return msgspec.structs.replace(config, worker=worker)


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Values that are allowed one by one but not together: the key, and what is wrong."""
    worker, manager, redis = config.worker, config.model_manager, config.redis
    if not _WORKER_NAME.fullmatch(worker.name):
        yield "worker.name", "is not up to 128 characters of A-Z a-z 0-9 _ . : @ -"
    if worker.name in (ORPHANS, BACKLOG):
        yield "worker.name", f"{ORPHANS} and {BACKLOG} are whose requests are nobody's"
    for model in worker.models:
        if not MODEL.fullmatch(model):
            problem = f"{excerpt(model)} is not a model id (a-z 0-9 _ . -, at most 64)"
            yield "worker.models", problem
        if worker.models.count(model) > 1:
            yield "worker.models", f"names {model} twice"
    served = f"is not one of worker.models ({', '.join(worker.models)})"
    if manager.default_model_id and manager.default_model_id not in worker.models:
        problem = f"{excerpt(manager.default_model_id)} {served}"
        yield "model_manager.default_model_id", problem
    for model in manager.preload_model_ids:
        if model not in worker.models:
            yield "model_manager.preload_model_ids", f"{excerpt(model)} {served}"
    first = {*manager.preload_model_ids, manager.default_model_id} - {""}
    if len(first) > manager.resident_cap:
        problem = f"{manager.resident_cap} is less than the {len(first)} models loaded at start"
        yield "model_manager.resident_cap", problem
    if worker.dead_after_ms < 2 * worker.heartbeat_ms:
        yield (
            "worker.dead_after_ms",
            f"{worker.dead_after_ms} is less than two beats of heartbeat_ms={worker.heartbeat_ms}",
        )
    if worker.resend_window_s > worker.audio_window_s:
        yield "worker.resend_window_s", f"is more than audio_window_s={worker.audio_window_s:g}"
    if worker.audio_ttl_s * 1000 <= worker.dead_after_ms:
        yield (
            "worker.audio_ttl_s",
            f"is not above dead_after_ms={worker.dead_after_ms}: "
            "a turn could not be taken over in time",
        )
    for name, family in registry.FAMILIES.items():
        for key, problem in family.contradictions(getattr(config.engine, name)):
            yield f"engine.{name}.{key}", problem
    try:
        parse(redis.url)
    except BadUrlError as error:
        yield "redis.url", str(error)
    if redis.tls_key_file and not redis.tls_cert_file:
        yield "redis.tls_key_file", "needs redis.tls_cert_file beside it"
