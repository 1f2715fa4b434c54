"""A tiny multi-speaker graph built like Piper's VITS, to test what the shipped voice has not."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 2
HOP = 4


def config(speakers: int) -> dict[str, Any]:
    """The ``.onnx.json`` beside it: characters are phonemes, the second speaker is the default."""
    letters = "_^$ abcdefghijklmnopqrstuvwxyzHAT.,!"
    return {
        "audio": {"sample_rate": 16000},
        "espeak": {"voice": "en-us"},
        "phoneme_type": "text",
        "phoneme_id_map": {letter: [i] for i, letter in enumerate(letters)},
        "num_symbols": len(letters),
        "num_speakers": speakers,
        "speaker_id_map": {f"v{i}": i for i in range(speakers)},
        "default_speaker_id": 1,
    }


def model(speakers: int) -> bytes:
    """A serialized graph: 400 frames a phoneme, ``HOP`` samples a frame, conditioned on ``sid``."""
    rng = np.random.Generator(np.random.PCG64(0))
    constants: dict[str, np.ndarray[Any, Any]] = {
        "emb": rng.standard_normal((speakers, CHANNELS)).astype(np.float32),
        "w_mean": rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32) * 0.02,
        "w_pre": rng.standard_normal((4, CHANNELS, 3)).astype(np.float32) * 0.2,
        "w_cond": rng.standard_normal((4, CHANNELS, 1)).astype(np.float32) * 0.2,
        "w_up": rng.standard_normal((4, 4, 2 * HOP)).astype(np.float32) * 0.3,
        "w_post": rng.standard_normal((1, 4, 7)).astype(np.float32) * 0.3,
        "two": np.array([2]),
        "batch": np.array([1]),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "first": np.array(0),
        "frames": np.array([1, 1, 1, 400]),
        "row": np.array([1, 1, -1]),
    }
    n = helper.make_node
    nodes = [
        n("Cast", ["input"], ["1"], to=TensorProto.FLOAT),
        n("Unsqueeze", ["1", "axis1"], ["2"]),
        n("Shape", ["1"], ["3"], start=1),
        n("Concat", ["batch", "two", "3"], ["4"], axis=0),
        n("ConstantOfShape", ["4"], ["5"]),
        n("RandomNormalLike", ["5"], ["6"], dtype=1),
        n("ReduceMean", ["6"], ["7"], axes=[1], keepdims=1),
        n("Add", ["2", "7"], ["8"]),
        n("Unsqueeze", ["8", "three_"], ["9"]),
        n("Tile", ["9", "frames"], ["10"]),
        n("Reshape", ["10", "row"], ["11"]),
        n("Conv", ["11", "w_mean"], ["12"], kernel_shape=[1]),
        n("RandomNormalLike", ["12"], ["13"], dtype=1),
        n("Gather", ["scales", "first"], ["14"]),
        n("Mul", ["13", "14"], ["15"]),
        n("Add", ["12", "15"], ["16"]),
        n("Gather", ["emb", "sid"], ["17"]),
        n("Unsqueeze", ["17", "axis2"], ["18"]),
        n("Add", ["16", "18"], ["19"]),
        n("Conv", ["19", "w_pre"], ["20"], kernel_shape=[3], pads=[1, 1]),
        n("Conv", ["18", "w_cond"], ["21"], kernel_shape=[1]),
        n("Add", ["20", "21"], ["22"]),
        n("LeakyRelu", ["22"], ["23"], alpha=0.1),
        n(
            "ConvTranspose",
            ["23", "w_up"],
            ["24"],
            kernel_shape=[2 * HOP],
            strides=[HOP],
            pads=[HOP // 2, HOP // 2],
        ),
        n("Conv", ["24", "w_post"], ["25"], kernel_shape=[7], pads=[3, 3]),
        n("Tanh", ["25"], ["26"]),
        n("Unsqueeze", ["26", "axis1"], ["output"]),
    ]
    constants["three_"] = np.array([3])
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
            helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("sid", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "time"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 15)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
