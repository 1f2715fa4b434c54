"""``voices``: add, list, mix and remove the voices of a model that clones recordings."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from voicefleet.cli.configs import locate
from voicefleet.cli.failure import Failure, require
from voicefleet.cli.table import Json, print_json, print_table

if TYPE_CHECKING:
    from voicefleet.worker.voicepacks.voicepack import Voicepack

app = App(name="voices", help="The voices of a model that speaks in any voice it is shown.")

FAMILY = "cosyvoice2"

Model = Annotated[str, Parameter(help="A voicepack of the cosyvoice2 family.")]
Directory = Annotated[
    str, Parameter(name="--dir", help="Default: the folder that a worker started here would use.")
]
Force = Annotated[bool, Parameter(negative="", help="Replace a voice of that name.")]
DEFAULT_MODEL = "cosyvoice2-en-base"


@app.command
async def add(
    name: str,
    *,
    wav: Path,
    text: str,
    model: Model = DEFAULT_MODEL,
    force: Force = False,
    gain: Annotated[bool, Parameter(help="Measure its loudness, by speaking.")] = True,
    config: Path | None = None,
    directory: Directory = "",
) -> None:
    """Add a voice from a recording of 3 to 30 s.

    Workers know it after their next start. Have the consent of the person who is heard.

    Parameters
    ----------
    name
        What requests will call it: A-Z a-z 0-9 _ . -
    wav
        One speaker, nothing else to be heard. WAV, FLAC, OGG or MP3, at any rate.
    text
        What is said in the recording, word for word.
    gain
        Load the model and speak once to measure how loud the voice is. Without it, every worker
        does so when the voice is first requested.
    config
        Of a worker, to measure with. Default: the shipped one of the model's family.
    """
    pack = _pack(model, directory)
    from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files  # noqa: PLC0415
    from voicefleet.worker.engines.cosyvoice2.voices.enrol import enrol  # noqa: PLC0415
    from voicefleet.worker.engines.cosyvoice2.voices.recording import RecordingError  # noqa: PLC0415
    from voicefleet.worker.engines.protocol import EngineError  # noqa: PLC0415

    path = _new_file(pack, name, force=force)
    if not text.strip():
        raise Failure("--text: says nothing; give the words that are said in the recording")
    try:
        voice = enrol(pack, name, wav, text)
    except RecordingError as error:
        raise Failure(f"--wav: {error}") from None
    voice_files.save(voice, path)
    if gain:
        try:
            measured = await _gain(pack, name, config)
            voice_files.save(replace(voice, gain=measured), path)
        except EngineError as error:
            print(f"its loudness is not measured, workers will: {error}")
    print(f"added {name} to {model}: {voice.seconds:.1f} s of recording, {path}")


async def _gain(pack: "Voicepack", name: str, config: Path | None) -> float:
    """The factor that brings the voice to the loudness that all voices have."""
    from voicefleet.worker.config.loading import load  # noqa: PLC0415
    from voicefleet.worker.config.sections import AudioConfig  # noqa: PLC0415
    from voicefleet.worker.local import standalone  # noqa: PLC0415

    settings = load(locate(config, f"{FAMILY}.yaml"), environ=os.environ, overrides=())
    return await standalone.gain_of(
        name, pack, msgspec.structs.replace(settings, audio=AudioConfig())
    )


@app.command(name="list")
def list_(*, model: Model = DEFAULT_MODEL, directory: Directory = "", as_json: Json = False) -> int:
    """List them; exit status 1 where one cannot be read."""
    pack = _pack(model, directory)
    from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files  # noqa: PLC0415
    from voicefleet.worker.engines.cosyvoice2.voices.voice import VoiceError  # noqa: PLC0415

    rows: list[tuple[object, ...]] = []
    listed: list[dict[str, object]] = []
    problems: list[str] = []
    for path in voice_files.files(pack.directory):
        try:
            voice = voice_files.load(path)
        except VoiceError as error:
            problems.append(str(error))
            listed.append({"voice": path.stem, "error": str(error)})
            continue
        listed.append(
            {
                **{"voice": voice.name, "seconds": voice.seconds, "rate": voice.source_rate},
                **{"lm_tokens": len(voice.speech_tokens), "flow_tokens": len(voice.flow_tokens)},
                **{"gain": voice.gain, "created": voice.created, "bytes": path.stat().st_size},
            }
        )
        gain = None if voice.gain is None else f"{voice.gain:.2f}"
        size = f"{path.stat().st_size / 1024:.0f} KiB"
        tokens = f"{len(voice.speech_tokens)} / {len(voice.flow_tokens)}"
        seconds, rate = f"{voice.seconds:.1f} s", f"{voice.source_rate} Hz"
        rows.append((voice.name, seconds, rate, tokens, gain, voice.created, size))
    if as_json:
        print_json(listed)
        return 1 if problems else 0
    heads = ("voice", "recording", "rate", "prompt tokens (LM / flow)", "gain", "created", "size")
    print_table(heads, rows)
    for problem in problems:
        print(f"fail  {problem}")
    return 1 if problems else 0


@app.command
def remove(name: str, *, model: Model = DEFAULT_MODEL, directory: Directory = "") -> None:
    """Remove a voice. Workers that have loaded it keep it until they end."""
    pack = _pack(model, directory)
    _file(pack, name).unlink()
    print(f"removed {name} from {model}")


@app.command
def mix(
    first: str,
    second: str,
    /,
    *,
    name: str,
    weight: float = 0.5,
    model: Model = DEFAULT_MODEL,
    force: Force = False,
    directory: Directory = "",
) -> None:
    """Mix two voices into a new one. The one with more weight sets the manner of speaking.

    Parameters
    ----------
    name
        What requests will call the new voice.
    weight
        From 0, all of the first voice, to 1, all of the second.
    """
    pack = _pack(model, directory)
    from voicefleet.worker.engines.cosyvoice2.voices import files as voice_files  # noqa: PLC0415
    from voicefleet.worker.engines.cosyvoice2.voices import voice as voices  # noqa: PLC0415

    path = _new_file(pack, name, force=force)
    a, b = (voice_files.load(_file(pack, part)) for part in (first, second))
    voice_files.save(voices.mix(a, b, weight, name), path)
    print(f"added {name} to {model}: {1 - weight:.0%} {first}, {weight:.0%} {second}, {path}")


def _pack(model: str, directory: str) -> "Voicepack":
    require("cosyvoice")
    from voicefleet.worker.voicepacks import voicepack  # noqa: PLC0415

    folder = voicepack.default_directory(directory)
    packs = voicepack.discover(folder)
    if model not in packs:
        raise Failure(f"--model: there is no voicepack {model!r} in {folder}; {_known(packs)}")
    if packs[model].family != FAMILY:
        raise Failure(f"--model: {model} does not speak in recorded voices; {_known(packs)}")
    return packs[model]


def _known(packs: "dict[str, Voicepack]") -> str:
    models = [model for model, pack in packs.items() if pack.family == FAMILY]
    return f"models that take voices: {', '.join(models) or 'none'}"


def _new_file(pack: "Voicepack", name: str, *, force: bool) -> Path:
    """The file to save a new voice in."""
    from voicefleet.worker.engines.cosyvoice2.voices.voice import path_of  # noqa: PLC0415

    path = path_of(pack.directory, name)
    if path.exists() and not force:
        raise Failure(f"{pack.model_id} has a voice {name!r} already: --force replaces it")
    return path


def _file(pack: "Voicepack", name: str) -> Path:
    """The file of a voice."""
    from voicefleet.worker.engines.cosyvoice2.voices.files import files  # noqa: PLC0415
    from voicefleet.worker.engines.cosyvoice2.voices.voice import path_of  # noqa: PLC0415

    path = path_of(pack.directory, name)
    if not path.is_file():
        known = ", ".join(path.stem for path in files(pack.directory)) or "none"
        raise Failure(f"{pack.model_id} has no voice {name!r}; its voices are: {known}")
    return path
