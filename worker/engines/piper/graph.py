"""Takes a Piper voice's ONNX graph apart into three stages that can be driven from outside.

A published graph is VITS in one piece: phonemes in, the whole utterance out, with unseeded noise
drawn inside. Cut at the frame noise and at the vocoder's input it becomes

    prior     phoneme ids, duration noise      -> mean and spread of every latent frame
    flow      those and frame noise            -> latent frames
    decoder   a window of latent frames        -> its samples

so that the noise is an input of exactly the right length, and audio leaves window by window
instead of after the last sample. The cuts are found by structure, not by node names, which
differ between exporters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

_RANDOM: Final = ("RandomNormalLike", "RandomNormal", "RandomUniformLike", "RandomUniform")

DURATION_NOISE: Final = "duration_noise"
"""Input of the prior: float32 ``[1, 2, phonemes]``, standard normal."""

MOST_HOP: Final = 2**16
"""Samples in a latent frame: 256 in all that are published."""

FRAME_NOISE: Final = "frame_noise"
"""Input of the flow: float32, standard normal, shaped like the prior's output ``mean``."""


class UnknownGraphError(ValueError):
    """The graph is not built like the VITS models that Piper exports."""


@dataclass(frozen=True)
class Stage:
    """A part of the graph: a serialized model and the names of its inputs and outputs."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Stages:
    """The three stages and what joins them.

    ``mean`` names the prior's output whose shape the frame noise takes, ``latent`` the decoder's
    input ``[1, channels, frames]``. A latent frame is ``hop`` samples, and a sample depends on at
    most ``context`` latent frames on either side of its own.
    """

    prior: Stage
    flow: Stage
    decoder: Stage
    mean: str
    latent: str
    hop: int
    context: int


def split(model: ModelProto) -> Stages:
    """Take the graph apart. ``model`` is changed and must not be used afterwards.

    Raises:
        UnknownGraphError: It is not a VITS graph of Piper's making.
    """
    graph = model.graph
    mean = _expose_noise(graph)
    decoder_nodes, latent = _decoder(graph)
    in_decoder = {id(node) for node in decoder_nodes}
    flow_nodes = [n for n in _downstream(graph.node, FRAME_NOISE) if id(n) not in in_decoder]
    in_flow = {id(node) for node in flow_nodes}
    prior_nodes = [n for n in graph.node if id(n) not in in_decoder and id(n) not in in_flow]

    audio = graph.output[0].name
    build = _StageBuilder(model)
    needed_by_decoder = build.free_inputs(decoder_nodes)
    needed_by_flow = build.free_inputs(flow_nodes)
    made_by_flow = {name for node in flow_nodes for name in node.output}
    made_by_prior = {name for node in prior_nodes for name in node.output}
    if needed_by_decoder & made_by_flow != {latent}:
        raise UnknownGraphError("the vocoder takes more than the latent frames")
    of_the_text = {name for node in _downstream(prior_nodes, "input") for name in node.output}
    if needed_by_decoder & of_the_text:
        # Anything with a time axis of its own could not be cut into windows.
        raise UnknownGraphError("the vocoder looks at the text past the latent frames")
    if FRAME_NOISE not in needed_by_flow:
        raise UnknownGraphError("the frame noise does not lead to the vocoder")
    return Stages(
        prior=build.stage(
            prior_nodes, ((needed_by_decoder | needed_by_flow) & made_by_prior) | {mean}
        ),
        flow=build.stage(flow_nodes, {latent}),
        decoder=build.stage(decoder_nodes, {audio}),
        mean=mean,
        latent=latent,
        hop=_hop(decoder_nodes),
        context=_context(decoder_nodes, audio, latent),
    )


def _expose_noise(graph: GraphProto) -> str:
    """Replace the random nodes by graph inputs. Returns the tensor the frame noise is shaped as."""
    nodes = [node for node in graph.node if node.op_type in _RANDOM]
    if not 1 <= len(nodes) <= 2 or any(node.op_type != "RandomNormalLike" for node in nodes):
        found = ", ".join(node.op_type for node in nodes) or "none"
        raise UnknownGraphError(f"expected one or two RandomNormalLike nodes, found {found}")
    *durations, frames = nodes
    for node in nodes:
        attributes = _attributes(node)
        if attributes.get("mean", 0.0) != 0.0 or attributes.get("scale", 1.0) != 1.0:
            raise UnknownGraphError("a random node is not standard normal")
    names = {node.output[0]: DURATION_NOISE for node in durations}
    names[frames.output[0]] = FRAME_NOISE
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
    for node in nodes:
        graph.node.remove(node)
    if durations:
        graph.input.append(_value(DURATION_NOISE, TensorProto.FLOAT))
    graph.input.append(_value(FRAME_NOISE, TensorProto.FLOAT))
    return frames.input[0]


def _decoder(graph: GraphProto) -> tuple[list[NodeProto], str]:
    """The vocoder's nodes and its input, which enters the convolution before the upsampling."""
    maker = {name: node for node in graph.node for name in node.output}
    node = next((node for node in graph.node if node.op_type == "ConvTranspose"), None)
    if node is None:
        raise UnknownGraphError("there is no ConvTranspose, so no vocoder")
    moving = {name for n in _downstream(graph.node, FRAME_NOISE) for name in n.output}
    node = _maker_of_moving_input(node, maker, moving)
    for _ in graph.node:  # a graph that leads round in a circle has no end
        if node.op_type == "Conv":
            break
        node = _maker_of_moving_input(node, maker, moving)
    else:
        raise UnknownGraphError("there is no convolution before the upsampling")
    latent = node.input[0]
    return _downstream(graph.node, latent), latent


def _maker_of_moving_input(
    node: NodeProto, maker: dict[str, NodeProto], moving: set[str]
) -> NodeProto:
    """The node before this one on the way that the latent takes, not that of the speaker."""
    for name in node.input:
        if name in moving:
            return maker[name]
    raise UnknownGraphError("the vocoder does not depend on the frame noise")


def _downstream(nodes: Iterable[NodeProto], tensor: str) -> list[NodeProto]:
    """The nodes that depend on ``tensor``, in the graph's own (topological) order."""
    reached = {tensor}
    found: list[NodeProto] = []
    for node in nodes:
        if any(name in reached for name in node.input):
            reached.update(node.output)
            found.append(node)
    return found


class _StageBuilder:
    """Cuts stages out of one model, with the constants and types they need."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._opsets = list(model.opset_import)
        self._ir_version = model.ir_version
        self._weights = {weight.name: weight for weight in graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
        values = (*inferred.value_info, *graph.input, *graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}

    def free_inputs(self, nodes: Sequence[NodeProto]) -> set[str]:
        """What the nodes read and neither make themselves nor find among the weights."""
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input if name}
        return read - made - self._weights.keys()

    def stage(self, nodes: Sequence[NodeProto], outputs: Iterable[str]) -> Stage:
        """A model of its own, pruned to what the outputs need."""
        ordered = tuple(sorted(outputs))
        nodes = _upstream(nodes, ordered)
        inputs = tuple(sorted(self.free_inputs(nodes)))
        read = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "stage",
            [_value(name, self._type(name)) for name in inputs],
            [_value(name, self._type(name)) for name in ordered],
            [weight for name, weight in self._weights.items() if name in read],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        return Stage(model.SerializeToString(), inputs, ordered)

    def _type(self, name: str) -> int:
        if self._types.get(name, TensorProto.UNDEFINED) == TensorProto.UNDEFINED:
            raise UnknownGraphError(f"the type of tensor {name!r} is unknown")
        return self._types[name]


def _without_weights(model: ModelProto) -> ModelProto:
    """A light copy for type inference: large weights become typed inputs."""
    copy = ModelProto()
    copy.ir_version = model.ir_version
    copy.opset_import.extend(model.opset_import)
    graph = copy.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        if math.prod(weight.dims) > 64:
            graph.input.append(
                helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            )
        else:
            graph.initializer.append(weight)
    return copy


def _upstream(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    needed = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _hop(decoder: Iterable[NodeProto]) -> int:
    hop = math.prod(_attributes(n)["strides"][0] for n in decoder if n.op_type == "ConvTranspose")
    if not 1 <= hop <= MOST_HOP:
        raise UnknownGraphError(f"a latent frame is {hop} samples")
    return hop


def _context(decoder: Sequence[NodeProto], audio: str, latent: str) -> int:
    """The receptive field on either side, in latent frames, walked from the audio backwards."""
    reach = {audio: 0}
    for node in reversed(decoder):
        here = max((reach.get(name, 0) for name in node.output), default=0)
        attributes = _attributes(node)
        if node.op_type == "Conv":
            (kernel,), (dilation,) = attributes["kernel_shape"], attributes.get("dilations", [1])
            here += math.ceil((kernel - 1) * dilation / 2)
        elif node.op_type == "ConvTranspose":
            (kernel,), (stride,) = attributes["kernel_shape"], attributes["strides"]
            pad = attributes.get("pads", [0, 0])[0]
            here = math.ceil((here + max(kernel - 1 - pad, pad)) / stride)
        for name in node.input:
            reach[name] = max(reach.get(name, 0), here)
    return reach[latent]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _value(name: str, elem_type: int) -> ValueInfoProto:
    """A tensor of any shape: ONNX Runtime needs only its type at a stage's border."""
    return helper.make_tensor_value_info(name, elem_type, None)
