"""Untrusted weights: pickles that run code, archives with wrong sizes, overlapping tensors.
overlap themselves."""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn

from verify.fuzz.campaign import CANARY
from verify.fuzz.mutators import NUMBERS, spoil
from verify.fuzz.of_voices import draw_safetensors
from verify.fuzz.target import Target, ensure
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.pack import checkpoint, weights
from voicefleet.worker.engines.cosyvoice2.voices import files
from voicefleet.worker.engines.cosyvoice2.voices.voice import VoiceError

ERRORS: Final = (CosyVoiceInitializationError,)
ROOM: Final = 6 * 2**30
"""A pickle may state a text length of up to 4 GiB, which is then reserved but not touched."""


class _Module(nn.Module):
    """A tiny module with one weight-norm pair, into which the weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.conv = nn.Conv1d(2, 3, 3)


def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "linear.weight": torch.randn(3, 4),
        "linear.bias": torch.randn(3),
        "conv.parametrizations.weight.original0": torch.rand(3, 1, 1) + 1,
        "conv.parametrizations.weight.original1": torch.randn(3, 2, 3),
        "conv.bias": torch.randn(3),
        "epoch": 3,
    }


class _Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _malicious(scratch: Path) -> list[Any]:
    canary = str(scratch / CANARY)
    code = f"open({canary!r}, 'w').close()"
    import os
    import subprocess

    return [
        _Runs(os.system, f"touch {canary}"),  # pyright: ignore[reportDeprecated]
        *(_Runs(eval, code), _Runs(exec, code)),
        *(
            _Runs(subprocess.Popen, ["touch", canary]),
            _Runs(Path(canary).touch),
            _Runs(open, canary, "w"),
        ),
        _Runs(torch.load, canary),
        _Runs(getattr, "", "__class__"),
    ]


def _oversized() -> list[Any]:
    """Tensors that claim more than they hold."""
    one = torch.zeros(1)
    return [
        one.expand(3, 4),
        one.expand(2**34, 2**20),
        torch.as_strided(torch.zeros(8), (3, 4), (1, 1)),
        torch.zeros(3, 4, dtype=torch.complex64),
        torch.zeros(3, 4, dtype=torch.int8),
        torch.zeros(3, 4).to_sparse(),
        torch.full((3, 4), float("nan")),
        torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8),
        torch.zeros(3, 4, device="meta"),
        torch.zeros(3, 4, requires_grad=True),
        nn.Parameter(torch.zeros(3, 4)),
        torch.zeros(3, 4, dtype=torch.bfloat16),
        torch.zeros(0),
        torch.tensor(1.0),
    ]


def _saved(content: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _rezipped(data: bytes, rng: Random, words: list[bytes]) -> bytes:
    """The archive with one record mutated, left out, doubled or deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            kind = zipfile.ZIP_STORED
            if name == chosen:
                match rng.randrange(5):
                    case 0:
                        continue
                    case 1:
                        kind = zipfile.ZIP_DEFLATED
                    case 2:
                        kind, content = zipfile.ZIP_DEFLATED, content + bytes(2**22)
                    case 3:
                        name = spoil(rng, [name.encode()]).decode("latin-1")  # noqa: PLW2901
                        name = "x" + name.replace("\0", "")[:200]  # noqa: PLW2901
                    case _:
                        content = _without_long_runs(spoil(rng, [content], words))
            new.writestr(name, content, kind)
    return out.getvalue()


def _without_long_runs(data: bytes) -> bytes:
    """PyTorch's error about a name takes time quadratic in the name's length.

    The worker bounds that by ``load_timeout_s``; here it would be found again and again.
    """
    return re.sub(rb"(.)\1{1000,}", lambda run: run[0][:1000], data, flags=re.DOTALL)


_OPCODES: Final = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def _draw_saved(state: Callable[[], dict[str, Any]], scratch: Path) -> Callable[[Random], bytes]:
    plain = [_saved(state()), _saved(state(), old=True)]
    words = [
        *(
            b"cos\nsystem\n(S'touch " + str(scratch / CANARY).encode() + b"'\ntR.",
            b"\x93",
            b"R",
            b"b",
        ),
        *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n", b"\x8a\xff", b"PK\x05\x06"),
        *(number.encode() for number in NUMBERS[:30]),
    ]
    odd = [*_malicious(scratch), *_oversized(), 7, "x", None, [1], {"a": torch.zeros(1)}]

    def draw(rng: Random) -> bytes:
        match rng.randrange(5):
            case 0:
                return _without_long_runs(spoil(rng, plain, words))
            case 1 | 2:
                return _rezipped(plain[0], rng, words)
            case _:
                content: Any = state()
                name = rng.choice([key for key in content if content[key] is not None])
                content[name] = rng.choice(odd)
                if rng.random() < 0.2:
                    content = rng.choice((odd[rng.randrange(len(odd))], [content], {1: content}))
                elif rng.random() < 0.2:
                    content[rng.choice((1, (1, 2), "x" * 9999, ""))] = torch.zeros(2)
                try:
                    return _saved(content, old=rng.random() < 0.3)
                except (RuntimeError, NotImplementedError, AttributeError):
                    return pickle.dumps(name)

    return draw


def weights_pt(scratch: Path) -> Target:
    """Weights as ``torch.save`` writes them, with bytes changed anywhere."""
    path = scratch / "llm.pt"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        state = weights.read_original(path)
        _assigned(state, path)

    return Target(_draw_saved(_state, scratch), feed, ERRORS, ROOM)


def _assigned(state: dict[str, Tensor], path: Path) -> None:
    with checkpoint.parameters_on_meta():
        module = _Module()
    checkpoint.assign(module, state, path, torch.float32, torch.device("cpu"))
    ensure(all(bool(t.isfinite().all()) for t in module.state_dict().values()), "not finite")


def weights_pickle(scratch: Path) -> Target:
    """The pickle inside an archive, mutated as a stream of opcodes."""
    path = scratch / "llm.pt"
    archive = _saved(_state())
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    name = next(name for name in contents if name.endswith("data.pkl"))
    words = [
        *_OPCODES,
        b"cos\nsystem\n",
        b"(K\x01K\x02t",
        b"ctorch\nFloatStorage\n",
        b"X\xff\xff\xff\x7f",
    ]
    calls = [pickle.dumps(one, protocol=2) for one in _malicious(scratch)]

    def draw(rng: Random) -> bytes:
        pickled = _without_long_runs(spoil(rng, [contents[name], contents[name], *calls], words))
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as new:
            for other, content in contents.items():
                new.writestr(other, pickled if other == name else content)
        return out.getvalue()

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        _assigned(weights.read_original(path), path)

    return Target(draw, feed, ERRORS, ROOM)


def weights_safetensors(scratch: Path) -> Target:
    """Weights as safetensors, with bytes changed anywhere."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    path = scratch / "llm.safetensors"
    state = {"linear.weight": torch.randn(3, 4), "linear.bias": torch.randn(3)}
    state |= {"conv.weight": torch.randn(3, 2, 3), "conv.bias": torch.randn(3)}
    save_file(state, path, {"source": "llm.pt", "source_size": "1", "dtype": "float32"})
    seed = path.read_bytes()

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        _assigned(weights.read(scratch, "llm.pt", torch.float32)[1], path)

    return Target(lambda rng: draw_safetensors(rng, seed), feed, ERRORS, ROOM)


def speakers_pt(scratch: Path) -> Target:
    """``spk2info.pt``: the ready speakers of the 300M models."""
    path = scratch / "spk2info.pt"

    def state() -> dict[str, Any]:
        return {
            "中文女": {"embedding": torch.ones(1, 192)},
            "anna": {
                "flow_embedding": torch.ones(192),
                "prompt_text": torch.zeros(1, 3, dtype=torch.int32),
                "llm_prompt_speech_token": torch.zeros(1, 4, dtype=torch.int32),
                "flow_prompt_speech_token": torch.zeros(1, 4, dtype=torch.int32),
                "prompt_speech_feat": torch.zeros(1, 8, 80),
            },
        }

    outer = _draw_saved(state, scratch)
    odd = [*_malicious(scratch), *_oversized(), 7, None, "x"]

    def draw(rng: Random) -> bytes:
        if rng.random() < 0.5:
            return outer(rng)
        content = state()
        content["anna"][rng.choice(list(content["anna"]))] = rng.choice(odd)
        try:
            return _saved(content)
        except (RuntimeError, NotImplementedError, AttributeError):
            return b""

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        for voice in files.sft_speakers(path).values():
            ensure(voice.mel.nbytes < 2**24, "a voice takes megabytes")

    return Target(draw, feed, (VoiceError,), ROOM)
