"""Configuration: three sources, one precedence, and errors that say where and what instead."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ROOT
from voicefleet.worker.config.loading import KEYS, SECRETS, ConfigError, load, variable
from voicefleet.worker.config.sections import Config

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return path


def value(config: Config, key: str) -> object:
    found: object = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def test_nothing_said_is_the_defaults() -> None:
    assert load(environ={}) == Config()
    assert load(environ={"PATH": "/bin", "VOICEFLEET_TEST_REDIS_URL": "redis://x"}) == Config()


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "worker: {lead_ms: 1, drain_timeout_s: 1, pause_timeout_s: 1}")
    environ = {"VOICEFLEET_WORKER_LEAD_MS": "2", "VOICEFLEET_WORKER_DRAIN_TIMEOUT_S": "2"}
    overrides = ["worker.lead_ms=3", "worker.lead_ms=4"]
    worker = load(path, environ=environ, overrides=overrides).worker
    assert (worker.lead_ms, worker.drain_timeout_s, worker.pause_timeout_s) == (4, 2.0, 1.0)


def test_the_names_that_deployments_use() -> None:
    config = load(
        environ={
            "VOICEFLEET_REDIS_URL": "rediss://cache:6380",
            "VOICEFLEET_MODEL_MANAGER_TTL_MS": "60000",
            "VOICEFLEET_ENGINE_TONE_RTF": "0.5",
            "VOICEFLEET_MODEL_MANAGER_WARMUP_ENABLED": "false",
            "VOICEFLEET_WORKER_MODELS": "tone-test, piper-en-joe",
            "VOICEFLEET_LOGGING_LEVEL": "debug",
        }
    )
    assert config.redis.url == "rediss://cache:6380"
    assert config.model_manager.ttl_ms == 60000
    assert config.engine.tone.rtf == 0.5
    assert config.model_manager.warmup_enabled is False
    assert config.worker.models == ("tone-test", "piper-en-joe")
    assert config.logging.level == "debug"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_its_variable_and_its_flag(key: str) -> None:
    default = value(Config(), key)
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert load(environ={variable(key): text}) == Config()
    assert load(environ={}, overrides=[f"{key}={text}"]) == Config()


def test_the_default_model_alone_is_the_one_served() -> None:
    config = load(environ={}, overrides=["model_manager.default_model_id=tone-test"])
    assert config.worker.models == ("tone-test",)


def test_a_path_is_relative_to_its_file_or_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = file(tmp_path / "etc", "model_manager: {voicepacks_dir: ../packs}")
    from_file = load(path, environ={}).model_manager.voicepacks_dir
    assert Path(from_file) == tmp_path / "packs"
    environ = {"VOICEFLEET_MODEL_MANAGER_VOICEPACKS_DIR": "packs"}
    from_environment = load(path, environ=environ).model_manager.voicepacks_dir
    assert Path(from_environment) == tmp_path / "cwd" / "packs"


def test_sections_and_files_may_be_empty(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "worker:\nengine:\n  tone:\n", "worker: {}\n"):
        assert load(file(tmp_path, text), environ={}) == Config()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("worker:\n  hartbeat_ms: 9", "fleet.yaml:2: worker.hartbeat_ms: is unknown; nearest is "
         "worker.heartbeat_ms"),
        ("worker:\n  ttl_ms: 9", "worker.ttl_ms: is unknown; nearest is model_manager.ttl_ms"),
        ("wroker: {}", "fleet.yaml:1: wroker: is unknown; nearest is worker"),
        ("engine: {pipr: {slots: 1}}", "engine.pipr: is unknown; nearest is engine.piper"),
        ("worker: {slots: 1}\nworker: {}", "fleet.yaml:2: worker: is there twice"),
        ("worker:\n  slots: 1\n  slots: 2", "fleet.yaml:3: worker.slots: is there twice"),
        ("worker: {slots: two}", "worker.slots: 'two' is not an integer from 0 to 10000"),
        ("worker: {slots: '2'}", "worker.slots: '2' is not an integer"),
        ("worker: {slots: true}", "worker.slots: 'True' is not an integer"),
        ("worker: {slots: }", "worker.slots: nothing is not an integer from 0 to 10000"),
        ("worker: {heartbeat_ms: 1001}", "'1001' is not an integer from 50 to 1000"),
        ("worker: {drain_timeout_s: 0}", "worker.drain_timeout_s: '0' is not a number above 0"),
        ("worker: {drain_timeout_s: .inf}", "'inf' is not a number above 0"),
        ("worker: {models: tone-test}", "worker.models: 'tone-test' is not a list of names"),
        ("worker: {name: 7}", "worker.name: '7' is not text: put it in quotation marks"),
        ("worker: 5", "worker: is a section"),
        ("model_manager: {warmup_enabled: 2}", "'2' is not true or false"),
        ("model_manager: {ttl_ms: -1}", "'-1' is not an integer of at least 0"),
        ("logging: {level: loud}", "'loud' is not one of debug, error, info, warning"),
        ("redis: {prefix: 'a{b}'}", "redis.prefix: 'a{b}' is not text that matches"),
        ("redis: {timeout_s: 0}", "redis.timeout_s: '0' is not a number above 0"),
        ("- worker", "fleet.yaml:1: holds no sections"),
        ("worker: {slots: 1", "is not YAML"),
        ("worker: {name: !!python/name:os.system x}", "is not YAML"),
        ("\0", "control characters"),
    ],
)  # fmt: skip
def test_the_file_is_refused_with_place_key_and_remedy(
    text: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file(tmp_path, text), environ={})
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load(tmp_path / "absent.yaml", environ={})
    (tmp_path / "latin.yaml").write_bytes(b"worker: {name: caf\xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8"):
        load(tmp_path / "latin.yaml", environ={})


def test_a_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={"VOICEFLEET_WORKER_SLOTS": "many"})
    assert str(caught.value) == (
        "VOICEFLEET_WORKER_SLOTS: worker.slots: 'many' is not an integer from 0 to 10000"
    )
    with pytest.raises(ConfigError, match="VOICEFLEET_REDIS_UL: is unknown; nearest is "
                       "VOICEFLEET_REDIS_URL"):  # fmt: skip
        load(environ={"VOICEFLEET_REDIS_UL": "redis://h"})


def test_variables_of_other_owners_are_left_alone() -> None:
    kubernetes = {
        "VOICEFLEET_REDIS_PORT": "tcp://10.0.0.1:6379",
        "VOICEFLEET_REDIS_PORT_6379_TCP": "tcp://10.0.0.1:6379",
        "VOICEFLEET_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "VOICEFLEET_REDIS_SERVICE_HOST": "10.0.0.1",
        "VOICEFLEET_REDIS_SERVICE_PORT_RESP": "6379",
    }
    others = {"VOICEFLEET_TEST_IMAGE": "redis:8", "VOICEFLEET_HOME": "/srv", "VOICEFLEET": "1"}
    assert load(environ=kubernetes | others) == Config()


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("worker.slots", "flag: is not section.key=value"),
        ("=1", "flag: is not section.key=value"),
        ("worker.slot=1", "flag: worker.slot: is unknown; nearest is worker.slots"),
        ("worker.slots=1.5", "flag: worker.slots: '1.5' is not an integer"),
        ("worker=1", "flag: worker: is unknown; nearest is worker."),
    ],
)
def test_a_flag_is_refused_by_its_key(flag: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(environ={}, overrides=[flag])


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["worker.models=a,b", "model_manager.default_model_id=c"],
         "flag: model_manager.default_model_id: 'c' is not one of worker.models (a, b)"),
        (["worker.models=a", "model_manager.preload_model_ids=a,x"],
         "model_manager.preload_model_ids: 'x' is not one of worker.models (a)"),
        (["worker.models=a,b", "model_manager.preload_model_ids=a,b",
          "model_manager.resident_cap=1"], "model_manager.resident_cap: 1 is less than the 2"),
        (["worker.models=a,a"], "worker.models: names a twice"),
        (["worker.models=A"], "worker.models: 'A' is not a model id"),
        (["worker.name=a b"], "worker.name: is not up to 128 characters"),
        (["worker.heartbeat_ms=500", "worker.dead_after_ms=999"],
         "worker.dead_after_ms: 999 is less than two beats of heartbeat_ms=500"),
        (["worker.heartbeat_ms=1000", "worker.dead_after_ms=2000",
          "worker.audio_ttl_s=2"], "worker.audio_ttl_s: is not above dead_after_ms=2000"),
        (["worker.resend_window_s=61"], "worker.resend_window_s: is more than audio_window_s=60"),
        (["engine.piper.first_chars=201"], "engine.piper.first_chars: is more than max_chars=200"),
        (["engine.cosyvoice2.first_chars=300"],
         "engine.cosyvoice2.first_chars: is more than max_chars=240"),
        (["engine.cosyvoice2.slots=65"], "engine.cosyvoice2.slots: 65 is more than max_slots=64"),
        (["engine.cosyvoice2.device=cpu", "engine.cosyvoice2.cuda_graphs=on"],
         "engine.cosyvoice2.cuda_graphs: needs a GPU, but device is cpu"),
        (["engine.cosyvoice2.device=cpu", "engine.cosyvoice2.dtype=fp16"],
         "engine.cosyvoice2.dtype: fp16 needs a GPU"),
        (["engine.cosyvoice2.device=cpu", "engine.cosyvoice2.llm_backend=vllm"],
         "engine.cosyvoice2.llm_backend: vllm needs a GPU"),
        (["engine.cosyvoice2.device=cpu", "engine.cosyvoice2.estimator_backend=tensorrt"],
         "engine.cosyvoice2.estimator_backend: tensorrt needs a GPU"),
        (["engine.cosyvoice2.device=gpu"],
         "engine.cosyvoice2.device: 'gpu' is not text that matches"),
        (["engine.cosyvoice2.load_trt=true"],
         "flag: engine.cosyvoice2.load_trt: needs implementation=upstream"),
        (["engine.cosyvoice2.implementation=upstream", "engine.cosyvoice2.compile=true"],
         "flag: engine.cosyvoice2.compile: needs implementation=native"),
        (["engine.cosyvoice2.implementation=upstream", "engine.cosyvoice2.dtype=bf16"],
         "engine.cosyvoice2.dtype: bf16 needs implementation=native"),
        (["engine.cosyvoice2.upstream_exact=true",
          "engine.cosyvoice2.estimator_backend=tensorrt"],
         "engine.cosyvoice2.upstream_exact: needs estimator_backend=native"),
        (["engine.cosyvoice2.text_streaming=true", "engine.cosyvoice2.llm_backend=vllm"],
         "engine.cosyvoice2.text_streaming: needs llm_backend=native"),
        (["redis.url=http://h"], "redis.url: the scheme is not one of redis, rediss"),
        (["redis.tls_key_file=k.pem"], "redis.tls_key_file: needs redis.tls_cert_file"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(environ={}, overrides=overrides)


@pytest.mark.parametrize("form", ["file", "variable", "flag"])
@pytest.mark.parametrize("secret", ["hunter2", "redis://:hunter2@h?x", "*hunter2", "%hunter2"])
@pytest.mark.parametrize("key", sorted(SECRETS))
def test_no_error_shows_a_secret(key: str, secret: str, form: str, tmp_path: Path) -> None:
    name = key.removeprefix("redis.")
    texts = {
        f"redis: {{{name}: {secret}}}",
        f"redis: {{{name}: [{secret}]}}",
        f"redis:\n  {name}: {secret}\n  nonsense: 1",
        f"redis:\n  {name}: '{secret}\n",
    }
    attempts = {
        "file": [(file(tmp_path, text), {}, []) for text in texts],
        "variable": [(None, {variable(key): secret, "VOICEFLEET_REDIS_X": secret}, [])],
        "flag": [(None, {}, [f"{key}={secret}", "redis.x=1"]), (None, {}, [secret])],
    }
    for path, environ, overrides in attempts[form]:
        with pytest.raises(ConfigError) as caught:
            load(path, environ=environ, overrides=[*overrides, "worker.nonsense=1"])
        assert "hunter2" not in str(caught.value)


@given(st.dictionaries(st.sampled_from(sorted(map(variable, KEYS))), st.text(max_size=20)))
def test_no_environment_does_more_harm_than_a_config_error(environ: dict[str, str]) -> None:
    try:
        config = load(environ=environ)
    except ConfigError as error:
        assert error.key in KEYS
    else:
        assert msgspec.convert(msgspec.to_builtins(config), Config) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_load_and_show_their_keys_with_their_defaults(path: Path) -> None:
    """``piper.yaml`` has the keys of all workers, each file those of its engine."""
    config = load(path, environ={})
    packs = Path(config.model_manager.voicepacks_dir)
    assert packs == ROOT / "voicepacks"
    assert config.model_manager.default_model_id in config.worker.models

    written = path.read_text()
    shown = re.sub(r"^( +)# (\w+:)", r"\1\2", written, flags=re.MULTILINE)
    assert shown != written
    sections = yaml.safe_load(shown)
    commented = yaml.safe_load(written)
    for key in KEYS:
        *above, name = key.split(".")
        node, said = sections, commented
        for section in above:
            node, said = (node or {}).get(section), (said or {}).get(section)
        shows_common = path.stem == "piper"
        if (node is None) if above[:1] == ["engine"] else not shows_common:
            continue
        assert name in (node or {}), f"{key} is missing"
        if name not in (said or {}):
            default = value(Config(), key)
            assert (tuple(node[name]) if isinstance(default, tuple) else node[name]) == default, key


def test_the_files_others_rely_on() -> None:
    piper = load(ROOT / "configs/piper.yaml", environ={})
    tone = load(ROOT / "configs/tone.yaml", environ={})
    assert (piper.worker.models, piper.engine.piper.slots) == (("piper-en-joe",), 8)
    assert (tone.worker.models, tone.engine.tone.slots) == (("tone-test",), 16)
    assert piper.redis.prefix == tone.redis.prefix == "tts"
