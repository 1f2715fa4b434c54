"""A Piper voice in a voicepack: its JSON, its graph, its bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any, Final

import onnx

from verify.fuzz import tiny_vits
from verify.fuzz.mutators import NUMBERS, spoil, spoil_tree
from verify.fuzz.target import Target, ensure
from voicefleet.worker.engines.piper.engine import PiperEngine
from voicefleet.worker.engines.piper.family import PiperConfig
from voicefleet.worker.engines.protocol import EngineError, Segment, TurnSpec
from voicefleet.worker.voicepacks.voicepack import Source, Voicepack

_MOST_SAMPLES: Final = 10_000_000


def _speaker(scratch: Path) -> Callable[[bytes, bytes], None]:
    """Load a voice from these two files and speak a word."""
    pack = Voicepack(
        family="piper",
        model_id="piper-x",
        version="1",
        languages=("en",),
        native_rate=16000,
        licence="none",
        source=Source(files={"model": "x.onnx", "config": "x.onnx.json"}),
        directory=scratch,
    )

    async def speak() -> None:
        engine = PiperEngine(pack, PiperConfig(threads=1))
        await engine.load()
        try:
            info = engine.info
            ensure(8_000 <= info.native_rate <= 192_000, "rate")
            ensure(0 < len(info.voices) <= 10_000, "voices")
            spec = TurnSpec(voice=info.default_voice, seed=0)
            count = 0
            async with aclosing(engine.speak(spec, _segments())) as chunks:
                async for chunk in chunks:
                    count += len(chunk.samples)
                    ensure(count < _MOST_SAMPLES, "a word without end")
        finally:
            await engine.unload()

    def feed(model: bytes, config: bytes) -> None:
        (scratch / "x.onnx").write_bytes(model)
        (scratch / "x.onnx.json").write_bytes(config)
        asyncio.run(speak())

    return feed


async def _segments() -> AsyncIterator[Segment]:
    yield Segment(0, "ab.", 0, 3)


def piper_config(scratch: Path) -> Target:
    """A Piper voice's JSON configuration."""
    feed, model = _speaker(scratch), tiny_vits.model(2)
    tree = tiny_vits.config(2)
    tree |= {"inference": {"noise_scale": 0.667, "length_scale": 1.0, "noise_w": 0.8}}
    tree |= {"language": {"code": "en_US"}, "hop_length": 256}
    short = {**tree, "phoneme_id_map": {"a": [1], "b": [2], ".": [3], "^": [4], "$": [5], "_": [0]}}

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.2:
            words = (b"null", b"[" * 5000, b"1e999", *(number.encode() for number in NUMBERS))
            return spoil(rng, [json.dumps(short).encode()], words)
        return json.dumps(spoil_tree(rng, short)).encode("utf-8", "replace")

    return Target(draw, lambda config: feed(model, config), (EngineError,))


def piper_graph(scratch: Path) -> Target:
    """The graph with its nodes rewired: well formed, but no voice."""
    feed, config = _speaker(scratch), json.dumps(tiny_vits.config(2)).encode()
    seed = tiny_vits.model(2)

    def draw(rng: Random) -> bytes:
        model = onnx.load_from_string(seed)
        for _ in range(rng.choice((1, 1, 2, 3))):
            _rewire(rng, model.graph)
        return model.SerializeToString()

    return Target(draw, lambda model: feed(model, config), (EngineError,))


def _rewire(rng: Random, graph: Any) -> None:
    nodes = graph.node
    node = rng.choice(nodes)
    names = [name for other in nodes for name in (*other.input, *other.output)]
    match rng.randrange(9):
        case 0 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
        case 1 if node.output:
            node.output[0] = rng.choice(names)
        case 2:
            node.op_type = rng.choice(("Conv", "Add", "RandomNormalLike", "Loop", "X", "Relu"))
        case 3:
            nodes.remove(node)
        case 4:
            nodes.append(node)
        case 5 if node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice((0, -1, 2**31, 2**62))
            if attribute.ints:
                attribute.ints[0] = rng.choice((0, -1, 1, 2**31, 2**62))
        case 6 if node.input:  # a circle
            node.input[0] = node.output[0] if node.output else ""
        case 7:
            weight = rng.choice(graph.initializer)
            weight.dims[:] = [rng.choice((0, 1, -1, 2**31, 2**40))] * rng.choice((0, 1, 3))
        case _:
            weight = rng.choice(graph.initializer)
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=rng.choice(("/etc/passwd", "../../x")))


def piper_bytes(scratch: Path) -> Target:
    """A Piper voice's ONNX file, changed byte by byte."""
    feed, config = _speaker(scratch), json.dumps(tiny_vits.config(2)).encode()
    seed = tiny_vits.model(2)
    return Target(
        lambda rng: spoil(rng, [seed], (b"Conv", b"ConvTranspose", b"RandomNormalLike", b"input")),
        lambda model: feed(model, config),
        (EngineError,),
    )
