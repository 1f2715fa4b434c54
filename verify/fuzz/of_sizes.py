"""The sizes of a CosyVoice 2 model: ``cosyvoice2.yaml`` and Qwen2's ``config.json``."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from verify.fuzz.mutators import spoil, spoil_tree
from verify.fuzz.of_settings import yaml_words
from verify.fuzz.target import Target, ensure
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY, Hyperparameters
from voicefleet.worker.engines.cosyvoice2.pack import check, layout, model_yaml, published_yaml

ERRORS: Final = (CosyVoiceInitializationError,)
LOADED_MB: Final = 8192
"""The memory that accepted sizes may need; the published model takes 2000 MB in float32."""


def _reader(scratch: Path) -> Callable[[], None]:
    (scratch / layout.QWEN).mkdir()
    (scratch / layout.HYPERPARAMETERS).write_text(published_yaml.model_yaml(TINY))
    (scratch / layout.QWEN / "config.json").write_bytes(published_yaml.qwen_config(TINY))

    def read() -> None:
        check.check(scratch, 24000)
        try:
            sizes = model_yaml.read(scratch / layout.HYPERPARAMETERS)
        except CosyVoiceInitializationError as error:
            ensure(len(str(error)) < 60_000, "an error is as long as the input")
            raise
        _check(sizes)

    return read


def _check(sizes: Hyperparameters) -> None:
    """Check that accepted sizes are within bounds."""
    lm, flow, vocoder = sizes.language_model, sizes.flow, sizes.vocoder
    ensure(lm.layers * lm.width * (4 * lm.width + 3 * lm.mlp) < LOADED_MB * 2**18, "lm")
    ensure(lm.vocabulary * lm.width < LOADED_MB * 2**18, "vocabulary")
    ensure(max(flow.encoder.blocks, flow.estimator.mid_blocks) <= 1000, "blocks")
    ensure(vocoder.hop < 2**20 and vocoder.fft < 2**20, "hop")


def hyper_yaml(scratch: Path) -> Target:
    """``cosyvoice2.yaml``, with bytes changed."""
    read, path = _reader(scratch), scratch / layout.HYPERPARAMETERS
    text = published_yaml.model_yaml(TINY)
    squares = "x0: 9\n" + "".join(f"x{i}: !ref <x{i - 1}> * <x{i - 1}>\n" for i in range(1, 40))
    lists = "l0: 9\n" + "".join(f"l{i}: [!ref <l{i - 1}>, !ref <l{i - 1}>]\n" for i in range(1, 40))
    loop = "loop: [!ref <loop>]\n"
    seeds = [
        text.encode(),
        *(
            (more + text.replace("sample_rate: 24000", f"sample_rate: !ref <{name}>")).encode()
            for more, name in ((squares, "x39"), (lists, "l39"), (loop, "loop"))
        ),
        (squares + lists + loop + text).encode(),
    ]
    words = [
        *yaml_words(scratch),
        *(b"!ref <x39>", b"!ref <l39>", b"!ref <loop>", b"!ref <x3> * <x5>", b"!ref 9 ** 9 ** 9"),
        *(
            b"!ref <sample_rate> // 0",
            b"!ref ((((((",
            b"!ref " + b"(" * 5000,
            b"!ref -" + b"-" * 5000,
        ),
        *(b"!ref <sample_rate> if 1 else 2", b"!ref __import__('os').system('id')", b"!copy <a>"),
        *(b"!tuple (1, 2)", b"!placeholder", b"!new:a.b", b"!name:a.b {}", b"!module:os"),
    ]

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return Target(lambda rng: spoil(rng, seeds, words), feed, ERRORS)


def hyper_yaml_tree(scratch: Path) -> Target:
    """The published file with some values replaced."""
    read, path = _reader(scratch), scratch / layout.HYPERPARAMETERS
    lines = published_yaml.model_yaml(TINY).splitlines()

    def draw(rng: Random) -> bytes:
        out = list(lines)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(out))
            name, colon, _value = out[at].partition(":")
            if colon:
                stray = spoil_tree(rng, _value.strip() or {})
                shown = yaml.safe_dump(stray, default_flow_style=True, allow_unicode=True)
                out[at] = f"{name}: {shown.removesuffix('...' + chr(10)).strip()}"
        return "\n".join(out).encode("utf-8", "replace")

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return Target(draw, feed, ERRORS)


def qwen_config(scratch: Path) -> Target:
    """``config.json`` of the language model."""
    read, path = _reader(scratch), scratch / layout.QWEN / "config.json"
    seed = path.read_bytes()
    tree: Any = json.loads(seed)
    tree |= {"head_dim": 16, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.3:
            return spoil(rng, [seed], (b"null", b"{", b"[" * 5000, b'"', b"1e999", b"-0"))
        return json.dumps(spoil_tree(rng, tree)).encode("utf-8", "replace")

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return Target(draw, feed, ERRORS)
