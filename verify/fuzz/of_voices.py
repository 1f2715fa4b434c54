"""Voice files, and the text tokenizer's files."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import numpy as np

from verify.fuzz.mutators import NUMBERS, spoil, spoil_tree
from verify.fuzz.target import Target, ensure
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError

_DTYPES: Final = ("F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X")


def safetensors_seed(path: Path) -> bytes:
    """A voice file's bytes, written by the product itself."""
    from voicefleet.worker.engines.cosyvoice2.voices.files import save
    from voicefleet.worker.engines.cosyvoice2.voices.voice import Voice

    rng = np.random.Generator(np.random.PCG64(0))
    tokens = rng.integers(0, 6561, 5)
    voice = Voice(
        name="anna",
        speaker=rng.standard_normal(192).astype(np.float32),
        prompt_text="What is said.",
        prompt_text_tokens=np.arange(3),
        speech_tokens=tokens,
        flow_tokens=tokens,
        mel=rng.standard_normal((10, 80)).astype(np.float32),
        gain=1.25,
        source_rate=44100,
        seconds=3.25,
    )
    save(voice, path)
    return path.read_bytes()


def draw_safetensors(rng: Random, seed: bytes) -> bytes:
    """Mutated bytes, or a well-formed header with wrong values."""
    length = struct.unpack("<Q", seed[:8])[0]
    if rng.random() < 0.3:
        return spoil(rng, [seed], (b"F32", b"BF16", b"data_offsets", b"\xff" * 8))
    tree = spoil_tree(rng, json.loads(seed[8 : 8 + length]), (*_DTYPES, [0, 2**40], [2**62, 2**62]))
    if rng.random() < 0.3 and isinstance(tree, dict):
        for entry in cast(dict[str, Any], tree).values():
            if isinstance(entry, dict) and "dtype" in entry and rng.random() < 0.5:
                entry["dtype"] = rng.choice(_DTYPES)
    header = json.dumps(tree).encode("utf-8", "replace")
    said = len(header) if rng.random() < 0.9 else rng.choice((0, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", said) + header + seed[8 + length :]


def voice_file(scratch: Path) -> Target:
    """The file of an enrolled voice."""
    from voicefleet.worker.engines.cosyvoice2.voices import files
    from voicefleet.worker.engines.cosyvoice2.voices.voice import VoiceError, path_of

    path = path_of(scratch, "anna")
    seed = safetensors_seed(path)

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        try:
            voice = files.voices_of(scratch)["anna"]
        except VoiceError as error:
            ensure(len(str(error)) < 4000, "an error is as long as the input")
            raise
        ensure(0 <= voice.seconds < 1e9 and voice.source_rate >= 0, "a recording of no length")

    return Target(lambda rng: draw_safetensors(rng, seed), feed, (VoiceError,))


def tokenizer(scratch: Path) -> Target:
    """The files of the text tokenizer."""
    from voicefleet.worker.engines.cosyvoice2.text.tokenizer import TextTokenizer

    vocabulary = {chr(33 + i): i for i in range(90)} | {"Ġ": 90, "ab": 91, "<|endoftext|>": 92}
    seeds: dict[str, list[bytes]] = {
        "vocab.json": [json.dumps(vocabulary).encode()],
        "merges.txt": [b"#version: 0.2\na b\n"],
        "tokenizer_config.json": [
            b'{"added_tokens_decoder": {"92": {"content": "<|endoftext|>"}}}'
        ],
        "added_tokens.json": [b'{"<|endofprompt|>": 93}'],
        "tokenizer.json": [
            json.dumps(
                {
                    "version": "1.0",
                    "added_tokens": [
                        {
                            **{"id": 92, "content": "<|endoftext|>", "special": True},
                            **{"single_word": False, "lstrip": False, "rstrip": False},
                            "normalized": False,
                        }
                    ],
                    "normalizer": {"type": "NFC"},
                    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
                    "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
                }
            ).encode()
        ],
    }
    words = (b"{}", b"[]", b"a b c\n", b"a\n", b"\n", *(number.encode() for number in NUMBERS))

    def draw(rng: Random) -> dict[str, bytes]:
        plain = ("vocab.json", "merges.txt", "tokenizer_config.json")
        names = rng.choice((plain, (*plain, "added_tokens.json"), ("tokenizer.json",)))
        files = {name: seeds[name][0] for name in names}
        name = rng.choice(names)
        if name.endswith(".json") and rng.random() < 0.6:
            tree: Any = spoil_tree(rng, json.loads(files[name]))
            files[name] = json.dumps(tree).encode("utf-8", "replace")
        else:
            files[name] = spoil(rng, [files[name]], words)
        return files

    def feed(files: dict[str, bytes]) -> None:
        for name in seeds:
            (scratch / name).unlink(missing_ok=True)
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        ids = TextTokenizer(scratch).encode("ab, <|endofprompt|> [laughter] é!")
        ensure(all(number >= 0 for number in ids), "a token below zero")

    return Target(draw, feed, (CosyVoiceInitializationError,))
