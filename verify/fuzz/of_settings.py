"""An operator's input: voicepacks, configuration files, environment, URLs."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from bench.testbed import ROOT
from verify.fuzz.campaign import CANARY
from verify.fuzz.mutators import BROKEN_UTF8, NUMBERS, spoil, spoil_tree
from verify.fuzz.target import Target, ensure
from voicefleet.wire.endpoint import BadUrlError, parse
from voicefleet.worker.config.loading import KEYS, ConfigError, load, variable
from voicefleet.worker.engines import registry
from voicefleet.worker.voicepacks import voicepack as packs
from voicefleet.worker.voicepacks.voicepack import METADATA, VoicepackError, is_inside

PASSWORD: Final = "tr0ub4dor&3"


def yaml_words(scratch: Path) -> list[bytes]:
    """Tokens of YAML, above all rare ones and those that would run code."""
    touch = f"touch {scratch / CANARY}"
    words = [
        *("&a ", "*a", "<<: *a", "<<: [*a, *a]", "? ", "- ", ": ", "\n", "\n  ", "\t", "|", ">-"),
        *(
            "---\n",
            "...\n",
            "%YAML 9.9\n",
            "!!int '_'",
            "!!int ''",
            "!!float x",
            "!!bool x",
            "!!str",
        ),
        *(
            "!!timestamp x",
            "2001-99-99",
            "2001-12-14t21:59:43.10-99:99",
            "!!binary '?'",
            "!!set {a}",
        ),
        *(
            "!!omap [a]",
            "!!pairs [a]",
            "!!map [a]",
            "!!seq {a: b}",
            "!!null x",
            "0b2",
            "0o9",
            "1:99:99",
        ),
        *(
            "~",
            ".nan",
            "-.inf",
            "0x" + "f" * 5000,
            "[" * 2000,
            "{a: " * 2000,
            "- " * 2000,
            "[[[]]]",
        ),
        *(
            f"!!python/object/apply:os.system ['{touch}']",
            "!!python/name:os.system",
            "!x y",
            "!!x y",
        ),
        *(f"!!python/object/new:os.system ['{touch}']", f"!apply:os.system ['{touch}']"),
        *(
            f"!new:subprocess.Popen {{args: ['touch', '{scratch / CANARY}']}}",
            "!ref <a>",
            "!include:x",
        ),
        *(
            "a: &a [x, x]\n",
            "b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n",
            "&a [*a]",
            "&a {a: *a}",
        ),
        *NUMBERS,
    ]
    bombs = ["a0: &a0 {x: y}\n", "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"]
    for level in range(1, 12):
        bombs[0] += f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n"
        bombs[1] += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
    # As a part of what each word is put into, and sometimes as all there is.
    return [*(word.encode() for word in words), *(bomb.encode() for bomb in bombs), *BROKEN_UTF8]


def _into_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return feed


def _dumped(tree: Any) -> bytes:
    """A tree as YAML, or its closest form."""
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError, TypeError):
        return repr(tree).encode("utf-8", "replace")


def _pack(scratch: Path) -> tuple[Path, list[bytes], Callable[[], object]]:
    folder = scratch / "tone" / "x"
    folder.mkdir(parents=True)
    seeds = [path.read_bytes() for path in sorted(ROOT.glob(f"voicepacks/*/*/{METADATA}"))]
    seeds.append(
        b"family: tone\nmodel_id: tone-x\nversion: '1'\nlanguages: [en]\nnative_rate: 24000\n"
        b"licence: none\nvoices: [a]\nprompts: {a: {audio: a.wav}}\nsource: {files: {model: m}}\n"
    )

    def read() -> None:
        try:
            pack = packs.read(folder)
        except VoicepackError as error:
            ensure(len(str(error)) < 4000, "an error is as long as the input")
            raise
        named = [*pack.source.files.values(), *(prompt.audio for prompt in pack.prompts.values())]
        ensure(all(is_inside(name) for name in named), "a path leads out of the pack")
        for role in pack.source.files:
            try:
                pack.file(role)
            except VoicepackError:
                continue
        registry.check(pack)

    return folder / METADATA, seeds, read


def voicepack(scratch: Path) -> Target:
    """A voicepack's metadata, with bytes changed."""
    path, seeds, read = _pack(scratch)
    words = yaml_words(scratch)
    return Target(lambda rng: spoil(rng, seeds, words), _into_file(path, read), (VoicepackError,))


def voicepack_tree(scratch: Path) -> Target:
    """A voicepack's metadata, with its YAML tree changed."""
    path, seeds, read = _pack(scratch)
    trees = [yaml.safe_load(seed) for seed in seeds]

    def draw(rng: Random) -> bytes:
        return _dumped(
            spoil_tree(rng, rng.choice(trees), ("..", "a/../../b", "tone-x", ["a"] * 99))
        )

    return Target(draw, _into_file(path, read), (VoicepackError,))


def _config(scratch: Path) -> tuple[Path, list[bytes], Callable[[], object]]:
    path = scratch / "config.yaml"
    seeds = [found.read_bytes() for found in sorted((ROOT / "configs").glob("*.yaml"))]
    seeds.append(f"redis: {{password: {PASSWORD}, url: 'redis://:{PASSWORD}@h'}}\n".encode())

    def read() -> None:
        try:
            load(path, environ={})
        except ConfigError as error:
            _check_error(error)
            raise

    return path, seeds, read


def _check_error(error: ConfigError) -> None:
    ensure(len(str(error)) < 2000, "an error is as long as the input")
    ensure(PASSWORD not in str(error), "an error holds a password")


def config_file(scratch: Path) -> Target:
    """A configuration file, with bytes changed."""
    path, seeds, read = _config(scratch)
    words = [*yaml_words(scratch), *(f"{key.split('.')[-1]}: ".encode() for key in KEYS)]
    return Target(lambda rng: spoil(rng, seeds, words), _into_file(path, read), (ConfigError,))


def config_tree(scratch: Path) -> Target:
    """A configuration file, with its YAML tree changed."""
    path, seeds, read = _config(scratch)
    trees = [yaml.safe_load(seed) for seed in seeds]
    return Target(
        lambda rng: _dumped(spoil_tree(rng, rng.choice(trees))),
        _into_file(path, read),
        (ConfigError,),
    )


def environment(_: Path) -> Target:
    """Environment variables and flags, a few at a time."""
    keys = sorted(KEYS)
    values = [
        b"1",
        b"true",
        b"auto",
        b"a,b",
        b"redis://h:1",
        b"0.5",
        f"redis://:{PASSWORD}@".encode(),
    ]

    def text(rng: Random) -> str:
        return spoil(rng, values).decode("utf-8", "surrogateescape").replace("\0", "")

    def draw(rng: Random) -> tuple[dict[str, str], list[str]]:
        environ = {variable(rng.choice(keys)): text(rng) for _ in range(rng.choice((0, 1, 2)))}
        if rng.random() < 0.1:
            environ[f"VOICEFLEET_WORKER_{text(rng)[:50]}"] = "1"
        flags = [f"{rng.choice(keys)}={text(rng)}" for _ in range(rng.choice((0, 1, 2)))]
        if rng.random() < 0.1:
            flags.append(text(rng))
        return environ, flags

    def feed(drawn: tuple[dict[str, str], list[str]]) -> None:
        try:
            load(environ=drawn[0], overrides=drawn[1])
        except ConfigError as error:
            ensure(len(str(error)) < 2000, "an error is as long as the input")
            raise

    return Target(draw, feed, (ConfigError,))


def url(_: Path) -> Target:
    """A server's URL."""
    seeds = [
        *(b"redis://127.0.0.1:6379/3", b"rediss://user:" + PASSWORD.encode() + b"@h:1"),
        *(b"redis+sentinel://h1:1,h2/name/2", b"rediss+cluster://[::1]:7000,h"),
    ]
    words = [
        b"://",
        b"@",
        b":",
        b"/",
        b",",
        b"[",
        b"]",
        b"%",
        b"%2F",
        b"?",
        b"#",
        b"redis+",
        b"\xc2\xb2",
    ]

    def feed(raw: bytes) -> None:
        try:
            location = parse(raw.decode("utf-8", "replace"))
        except BadUrlError as error:
            ensure(PASSWORD not in str(error), "an error holds a password")
            ensure(len(str(error)) < 300, "an error is as long as the input")
            raise
        ensure(all(name and 0 < port < 65536 for name, port in location.seeds), "seeds")
        ensure(0 <= location.db < 2**31, "db")
        ensure(PASSWORD not in repr(location), "its repr holds a password")

    return Target(lambda rng: spoil(rng, seeds, words, largest=5000), feed, (BadUrlError,))
