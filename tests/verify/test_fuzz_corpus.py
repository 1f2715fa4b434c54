"""Inputs that once broke something, each named after what it broke."""

import asyncio
import json
import re
import struct
from pathlib import Path
from typing import Any, cast

import anyio
import numpy as np
import pytest
from structlog.testing import capture_logs

from voicefleet.wire.endpoint import BadUrlError, parse
from voicefleet.wire.link import Link, LinkClosedError
from voicefleet.worker.config.loading import ConfigError, load
from voicefleet.worker.control.session_watch import Directive, SessionWatch
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError
from voicefleet.worker.engines.cosyvoice2.hyperparameters import TINY
from voicefleet.worker.engines.cosyvoice2.pack import layout, model_yaml, published_yaml
from voicefleet.worker.engines.hosting import messages
from voicefleet.worker.engines.hosting.messages import Alive, Audio, Logged, ProtocolError, Unpacker
from voicefleet.worker.engines.hosting.process import EngineProcess
from voicefleet.worker.engines.hosting.remote import RemoteCore
from voicefleet.worker.engines.piper.engine import PiperEngine
from voicefleet.worker.engines.piper.family import PiperConfig
from voicefleet.worker.engines.protocol import (
    EngineError,
    EngineInfo,
    EngineLoadError,
    Mark,
    Segment,
    TurnSpec,
)
from voicefleet.worker.store.lease_states import Claim
from voicefleet.worker.store.queues import Delivery
from voicefleet.worker.store.sessions import Lease
from voicefleet.worker.synthesis.turn import Trail
from voicefleet.worker.voicepacks import voicepack
from voicefleet.worker.voicepacks.voicepack import METADATA, Source, Voicepack, VoicepackError

pytestmark = pytest.mark.anyio

PACK = (
    "family: tone\nmodel_id: tone-x\nversion: '1'\nlanguages: [en]\nnative_rate: 24000\n"
    "licence: none\n"
)


def bomb(kind: str) -> str:
    """A document that expands to 9 ** 12 nodes, by merge keys or by aliases of lists."""
    first, more = {"merge": ("{x: y}", "{{<<: [{}]}}"), "list": ("[x]", "[{}]")}[kind]
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 13):
        names = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {more.format(names)}")
    return "\n".join(lines) + "\n"


YAML = {
    "nested": "description: " + "[" * 2000,
    "a bomb of merges": bomb("merge"),
    "a bomb of lists": bomb("list"),
    "an alias in itself": "tags: &a [*a]",
    "no day": "version: 2001-99-99",
    "no integer": "native_rate: !!int _",
    "an integer of no digits": "native_rate: !!int ''",
    "no boolean": "synthetic: !!bool x",
    "no time": "version: !!timestamp x",
    "too many digits": "native_rate: " + "9" * 5000,
    "a key that is there twice": "tags: [a]\ntags: [b]",
    "a call": "description: !!python/object/apply:os.system ['true']",
    "half a megabyte": "description: " + "x" * 2**19,
}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "tone" / "x"
    folder.mkdir(parents=True)
    (folder / METADATA).write_text(PACK)
    voicepack.read(folder)
    return folder


@pytest.mark.timeout(60)
class TestYaml:
    @pytest.mark.parametrize("what", YAML)
    def test_of_a_voicepack(self, pack: Path, what: str) -> None:
        kept = [line for line in PACK.splitlines() if not YAML[what].startswith(line[:7])]
        (pack / METADATA).write_text("\n".join([*kept, YAML[what]]))
        with pytest.raises(VoicepackError) as caught:
            voicepack.read(pack)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("what", YAML)
    def test_of_a_configuration(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("worker:\n  slots:\n" + re.sub("^", "    ", YAML[what], flags=re.MULTILINE))
        with pytest.raises(ConfigError):
            load(path, environ={})

    def test_may_repeat_itself_a_little(self, pack: Path) -> None:
        (pack / METADATA).write_text(PACK + "tags: &t [a, b]\ncapabilities: *t\n")
        assert voicepack.read(pack).capabilities == ("a", "b")

    def test_a_key_of_any_length_is_named_shortly(self, pack: Path) -> None:
        (pack / METADATA).write_text(PACK + f"{'9' * 900}: 1\n")
        with pytest.raises(VoicepackError, match="unknown key '9999") as caught:
            voicepack.read(pack)
        assert len(str(caught.value)) < 500


class TestSettings:
    def test_a_password_behind_a_forgotten_colon_is_not_shown(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("redis: {url redis:$tr0ub4dor}\n")
        with pytest.raises(ConfigError, match="is unknown") as caught:
            load(path, environ={})
        assert "tr0ub4dor" not in str(caught.value)

    def test_bytes_that_are_no_text(self) -> None:
        with pytest.raises(ConfigError, match=r"worker\.name"):
            load(environ={"VOICEFLEET_WORKER_NAME": "\udcff"})

    @pytest.mark.parametrize("number", ["9" * 5000, "4294967296"])
    def test_a_database_of_too_many_digits(self, number: str) -> None:
        with pytest.raises(BadUrlError, match="database number"):
            parse(f"redis://h/{number}")


CHAIN = "".join(f"x{i}: !ref <x{i - 1}> * 0 + <x{i - 1}> * 0\n" for i in range(1, 40))
LISTS = "".join(f"x{i}: [!ref <x{i - 1}>, !ref <x{i - 1}>]\n" for i in range(1, 40))
REFERENCES = {
    "a sum of two, forty times": "x0: 9\n" + CHAIN,
    "a list of two, forty times": "x0: 9\n" + LISTS,
    "a list of itself": "x39: [!ref <x39>]\n",
    "a number of 5000 digits": "x39: !ref <y> * 1\ny: 0x" + "f" * 4500 + "\n",
    "no number at all": "x39: .nan\n",
    "itself by a list": "x39: !ref <y>\ny: [[!ref <x39>]]\n",
}


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    (tmp_path / layout.QWEN).mkdir()
    (tmp_path / layout.QWEN / "config.json").write_bytes(published_yaml.qwen_config(TINY))
    path = tmp_path / layout.HYPERPARAMETERS
    path.write_text(published_yaml.model_yaml(TINY))
    return path


@pytest.mark.timeout(60)
class TestSizes:
    @pytest.mark.parametrize("what", REFERENCES)
    def test_a_reference_that_leads_too_far(self, sizes: Path, what: str) -> None:
        text = sizes.read_text().replace(
            "inference_cfg_rate: 0.7", "inference_cfg_rate: !ref <x39>"
        )
        assert "<x39>" in text
        sizes.write_text(REFERENCES[what] + text)
        with pytest.raises(CosyVoiceInitializationError) as caught:
            model_yaml.read(sizes)
        assert len(str(caught.value)) < 5000

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("num_attention_heads", 0),
            ("num_attention_heads", -1),
            ("num_hidden_layers", 10**9),
            ("hidden_size", 2**40),
            ("rope_theta", None),
        ],
    )
    def test_a_language_model_beyond_measure(self, sizes: Path, key: str, value: Any) -> None:
        path = sizes.parent / layout.QWEN / "config.json"
        config: dict[str, Any] = json.loads(path.read_bytes()) | {key: value}
        if value is None:
            config = {**config, "rope_parameters": {"rope_theta": 10**400}}
        path.write_text(json.dumps(config))
        with pytest.raises(CosyVoiceInitializationError):
            model_yaml.read(sizes)

    def test_a_config_that_is_no_text(self, sizes: Path) -> None:
        path = sizes.parent / layout.QWEN / "config.json"
        path.write_bytes(path.read_bytes().replace(b"qwen2", b"\xff"))
        with pytest.raises(CosyVoiceInitializationError):
            model_yaml.read(sizes)


@pytest.mark.parametrize(
    "changes",
    [
        *({"seconds": "nan"}, {"seconds": "inf"}, {"seconds": "-1"}, {"source_rate": "-1"}),
        *({"version": "9" * 9999}, {"gain": "9" * 5000}),
    ],
    ids=["nan", "inf", "negative", "negative rate", "version", "gain"],
)
def test_a_voice_that_says_nonsense_of_itself(tmp_path: Path, changes: dict[str, str]) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the cosyvoice extra")
    from voicefleet.worker.engines.cosyvoice2.voices import files
    from voicefleet.worker.engines.cosyvoice2.voices.voice import VoiceError

    metadata = {"format": "cosyvoice2-voice", "version": "1", "name": "x", "prompt_text": ""}
    metadata |= {"gain": "", "created": "", "source_rate": "0", "seconds": "0.0"}
    tensors = {"speaker": np.ones(192, np.float32), "mel": np.zeros((0, 80), np.float32)}
    tensors |= {name: np.zeros(0, np.int64) for name in ("speech_tokens", "flow_tokens")}
    path = tmp_path / "x.safetensors"
    safetensors.save_file(tensors, path, metadata)
    files.load(path)
    safetensors.save_file(tensors, path, metadata | changes)
    with pytest.raises(VoiceError) as caught:
        files.load(path)
    assert len(str(caught.value)) < 500


class TestEngineProcess:
    @pytest.mark.parametrize(
        "body",
        [
            messages.pack(Logged("info", "abc", {}))[4:].replace(b"abc", b"\xff\xff\xff"),
            messages.pack(Logged("info", "x", {"a": 1}))[4:-1] + b"\x91" * 9999 + b"\xc0",
            messages.pack(Alive())[4:] + b"\0",
        ],
        ids=["no UTF-8", "nested", "more than one"],
    )
    def test_bytes_that_are_no_message(self, body: bytes) -> None:
        with pytest.raises(ProtocolError):
            Unpacker(messages.Report).feed(struct.pack("<I", len(body)) + body)

    @pytest.mark.parametrize(
        ("audio", "sound"),
        [
            (Audio(1, b"\0" * 8, (Mark(2, Segment(0, "x", 0, 1)),)), True),
            (Audio(1, b"\0" * 7), False),
            (Audio(1, b"\0" * 8, (Mark(3, Segment(0, "x", 0, 1)),)), False),
            (Audio(1, b"\0" * 8, (Mark(-1, Segment(0, "x", 0, 1)),)), False),
        ],
    )
    def test_audio_that_is_none(self, audio: Audio, sound: bool) -> None:
        assert audio.is_sound is sound

    def test_a_line_for_the_log_may_have_fields_of_any_name(self) -> None:
        class Child(EngineProcess):
            def kill(self) -> None:
                raise AssertionError("what is well formed is no nonsense")

        names = ("event", "self", "level", "exc_info", "stack_info", "", "a b")
        with capture_logs() as logs:
            child = Child(lambda _: None, lambda _: None)
            child.data_received(messages.pack(Logged("info", "x", dict.fromkeys(names, 1))))
        assert [line["event"] for line in logs] == ["x"]

    async def test_a_process_that_sends_half_a_sample_is_lost(self) -> None:
        core = RemoteCore("m", 5.0)
        killed: list[bool] = []
        child = core._process = EngineProcess(core._on_report, core._mark_lost)
        child.kill = lambda: killed.append(True)  # type: ignore[method-assign]
        turn = core.open(TurnSpec(voice="a", seed=0))
        child.data_received(messages.pack(Audio(turn.number, b"\0" * 7)))
        with pytest.raises(EngineError, match="nonsense"):
            await turn.next()
        assert killed


@pytest.mark.timeout(60)
class TestPiper:
    @pytest.fixture
    def voice(self, tmp_path: Path) -> Path:
        """A folder with a valid graph and its configuration."""
        for package in ("piper", "onnx", "onnxruntime"):
            pytest.importorskip(package, reason="needs the piper extra")
        from verify.fuzz import tiny_vits

        (tmp_path / "x.onnx").write_bytes(tiny_vits.model(2))
        (tmp_path / "x.onnx.json").write_text(json.dumps(tiny_vits.config(2)))
        return tmp_path

    async def load(self, folder: Path) -> EngineInfo:
        engine = PiperEngine(
            Voicepack(
                family="piper",
                model_id="piper-x",
                version="1",
                languages=("en",),
                native_rate=16000,
                licence="none",
                source=Source(files={"model": "x.onnx", "config": "x.onnx.json"}),
                directory=folder,
            ),
            PiperConfig(threads=1),
        )
        await engine.load()
        info = engine.info
        await engine.unload()
        return info

    async def test_what_is_sound_is_loaded(self, voice: Path) -> None:
        assert (await self.load(voice)).voices == ("v0", "v1")

    async def test_a_graph_that_leads_round_in_a_circle(self, voice: Path) -> None:
        import onnx

        graph = onnx.load_from_string((voice / "x.onnx").read_bytes())
        (upsampling,) = (n for n in graph.graph.node if n.op_type == "ConvTranspose")
        (before,) = (n for n in graph.graph.node if upsampling.input[0] in n.output)
        before.input[0] = before.output[0]
        before.input.append(upsampling.input[0])
        moving = next(n for n in graph.graph.node if n.op_type == "Add" and "22" in n.output)
        moving.output[0] = before.output[0]
        (voice / "x.onnx").write_bytes(graph.SerializeToString())
        with pytest.raises(EngineLoadError, match="no convolution before"):
            await self.load(voice)

    async def test_weights_that_lie_in_another_file(self, voice: Path) -> None:
        import onnx

        graph = onnx.load_from_string((voice / "x.onnx").read_bytes())
        weight = next(w for w in graph.graph.initializer if w.name == "w_pre")
        (voice / "weights").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights")
        (voice / "x.onnx").write_bytes(graph.SerializeToString())
        with pytest.raises(EngineLoadError, match="cannot be loaded"):
            await self.load(voice)

    @pytest.mark.parametrize(
        "changes",
        [
            {"audio": {"sample_rate": 0}},
            {"audio": {"sample_rate": "16000"}},
            {"audio": {"sample_rate": 10**9}},
            {"num_speakers": 10**9, "speaker_id_map": {}},
            {"num_speakers": "2"},
            {"speaker_id_map": ["v0", "v1"]},
            {"speaker_id_map": {"v0": 0, "v1": "1"}},
            {"default_speaker_id": [1]},
            {"inference": {"noise_scale": "0.667"}},
            {"language": ["en"]},
        ],
        ids=str,
    )
    async def test_a_configuration_of_other_types(
        self, voice: Path, changes: dict[str, Any]
    ) -> None:
        path = voice / "x.onnx.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(EngineLoadError, match="cannot be loaded"):
            await self.load(voice)


class TestLease:
    def test_an_epoch_of_5000_digits(self) -> None:
        watch = SessionWatch(Delivery("m", "1-1", {}, Claim.FRESH), "s", "r")
        watch.epoch = "1763836229000000"
        watch.lease = Lease.decode({b"active": b"1", b"epoch": b"9" * 5000})
        assert watch.directive() in (Directive.SPEAK, Directive.YIELD)

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"\0", b"{}", b"[[]]", b'[{"segment":0}]', b"\xff", b"[" * 9999),
            b'[{"segment":-1,"char":0,"native":0}]',
            b'[{"segment":0,"char":0,"native":-9}]',
        ],
    )
    def test_resume_points_that_are_none(self, raw: bytes) -> None:
        assert Trail.decode(raw) == []


HOSTILE = {
    "a map as a key": b"%1\r\n*0\r\n+x\r\n",
    "a list in a set": b"~1\r\n*0\r\n",
    "two thousand million elements": b"*2147483647\r\n",
    "nested": b"*1\r\n" * 50,
    "no number": b":x\r\n",
    "a reply nobody asked for": b"+a\r\n" * 9,
    "a push that is empty": b">0\r\n:\r\n",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_reply_of_a_broken_server_closes_the_link(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(HOSTILE[what])
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with server:
        _, made = await asyncio.get_running_loop().create_connection(Link, "127.0.0.1", port)
        link = cast(Link, made)
        with anyio.fail_after(20), pytest.raises(LinkClosedError):
            await link.batch([["PING"]] * 20, timeout_s=15)
        link.close()
    assert "Fatal error" not in caplog.text
