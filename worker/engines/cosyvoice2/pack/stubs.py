"""Stubs for the published parts that are not drawn as random weights.

Small, deterministic networks with the signatures of the published files, for the speaker encoder
and the speech tokenizer; and a text tokenizer of single bytes. Their output depends on their input,
but is meaningless.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from voicefleet.worker.engines.cosyvoice2.text.tokenizer import CONTROL

SPEECH_TOKENS = 6561
_OPSET = 17


def write_speaker_encoder(path: Path, seed: int = 0) -> None:
    """Write a ``campplus.onnx``: ``input`` f32 ``[1, T, 80]`` to ``output`` f32 ``[1, 192]``.

    A random layer with tanh, averaged over time. (The fbank's mean over time is 0, so a linear
    layer alone would return 0.)
    """
    node, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    rng = np.random.Generator(np.random.PCG64(seed))
    _save(
        path,
        nodes=[
            node("MatMul", ["input", "weight"], ["wide"]),
            node("Tanh", ["wide"], ["bent"]),
            node("ReduceMean", ["bent"], ["output"], axes=[1], keepdims=0),
        ],
        inputs=[onnx.helper.make_tensor_value_info("input", kind, [1, "T", 80])],
        outputs=[onnx.helper.make_tensor_value_info("output", kind, [1, 192])],
        weights={"weight": 0.1 * rng.standard_normal((80, 192))},
    )


def write_speech_tokenizer(path: Path, seed: int = 0) -> None:
    """Write a ``speech_tokenizer_v2.onnx``.

    ``feats`` f32 ``[1, 128, T]`` and ``feats_length`` int32 ``[1]`` to ``indices`` int32
    ``[1, ceil(T / 4)]``, each below 6561: two convolutions of stride 2, as in the published one,
    then the index of the strongest of 6561 random directions.
    """
    node, info, kinds = (
        onnx.helper.make_node,
        onnx.helper.make_tensor_value_info,
        onnx.TensorProto,
    )
    rng = np.random.Generator(np.random.PCG64(seed))
    stride: dict[str, Any] = {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}
    _save(
        path,
        nodes=[
            node("Conv", ["feats", "first"], ["half"], **stride),
            node("Tanh", ["half"], ["half_bent"]),
            node("Conv", ["half_bent", "second"], ["quarter"], **stride),
            node("Tanh", ["quarter"], ["quarter_bent"]),
            node("Conv", ["quarter_bent", "codes"], ["scores"], kernel_shape=[1]),
            node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            # The published file has the length as an input, so this one uses it too.
            node("Cast", ["feats_length"], ["length"], to=kinds.INT64),
            node("Add", ["length", "three"], ["length_up"]),
            node("Div", ["length_up", "four"], ["tokens"]),
            node("Slice", ["best", "zero", "tokens", "one"], ["kept"]),
            node("Cast", ["kept"], ["indices"], to=kinds.INT32),
        ],
        inputs=[
            info("feats", kinds.FLOAT, [1, 128, "T"]),
            info("feats_length", kinds.INT32, [1]),
        ],
        outputs=[info("indices", kinds.INT32, [1, "N"])],
        weights={
            "first": 0.2 * rng.standard_normal((16, 128, 3)),
            "second": 0.3 * rng.standard_normal((16, 16, 3)),
            "codes": rng.standard_normal((SPEECH_TOKENS, 16, 1)),
            **{
                name: np.array([n])
                for name, n in (("zero", 0), ("one", 1), ("three", 3), ("four", 4))
            },
        },
    )


def write_text_tokenizer(directory: Path) -> None:
    """Write a ``CosyVoice-BlankEN/`` whose tokens are single bytes: 275 with the added tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: number for number, character in enumerate(_byte_characters())}
    added = {
        str(len(vocabulary) + n): {"content": token, "special": True}
        for n, token in enumerate(CONTROL[:3])
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    for name, content in (
        ("vocab.json", msgspec.json.encode(vocabulary)),
        ("merges.txt", b"#version: 0.2\n"),
        ("tokenizer_config.json", msgspec.json.encode(config)),
    ):
        (directory / name).write_bytes(content)


def _byte_characters() -> list[str]:
    """A visible character for each of the 256 bytes, as byte-level BPE writes them."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {byte: chr(byte) for byte in visible}
    characters |= {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return [characters[byte] for byte in range(256)]


def _save(
    path: Path,
    *,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, np.ndarray[Any, Any]],
) -> None:
    constants = [
        onnx.numpy_helper.from_array(
            value.astype(np.float32) if value.dtype == np.float64 else value, name
        )
        for name, value in weights.items()
    ]
    graph = onnx.helper.make_graph(nodes, "stand-in", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
