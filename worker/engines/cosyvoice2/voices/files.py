"""Voices on disk: our own safetensors files, and upstream's ``spk2info.pt``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from voicefleet.schemas.fields import excerpt
from voicefleet.worker.engines.cosyvoice2.voices.voice import (
    FOLDER,
    FORMAT,
    SUFFIX,
    VERSION,
    Voice,
    VoiceError,
    no_frames,
    no_tokens,
)

_TENSORS = ("speaker", "speech_tokens", "flow_tokens", "mel")
_OPTIONAL = "prompt_text_tokens"

PUBLISHED_SPEAKERS = {
    "中文女": "zh-female",
    "中文男": "zh-male",
    "日语男": "ja-male",
    "粤语女": "yue-female",
    "英文女": "en-female",
    "英文男": "en-male",
    "韩语女": "ko-female",
}
"""The published speakers' names, and the ASCII names that requests use for them."""


def save(voice: Voice, path: Path) -> None:
    """Write ``voice`` to ``path`` atomically: a reader sees the old file or the new one."""
    from safetensors.numpy import (  # noqa: PLC0415  (the extra)
        save_file,  # pyright: ignore[reportUnknownVariableType]
    )

    tensors: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(voice, name)) for name in _TENSORS
    }
    if voice.prompt_text_tokens is not None:
        tensors[_OPTIONAL] = np.ascontiguousarray(voice.prompt_text_tokens)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": voice.name,
        "prompt_text": voice.prompt_text,
        "gain": "" if voice.gain is None else repr(voice.gain),
        "created": voice.created,
        "source_rate": str(voice.source_rate),
        "seconds": repr(voice.seconds),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Voice:
    """Read a voice.

    Raises:
        VoiceError: The file is missing, is not a voice or has another version, or a tensor is
            missing or has another shape or dtype. The message names the file.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  (the extra)

    try:
        with safe_open(path, framework="numpy") as file:  # pyright: ignore[reportUnknownVariableType]
            metadata = cast("dict[str, str]", file.metadata() or {})
            names = cast("list[str]", file.keys())
            tensors = {name: cast("NDArray[Any]", file.get_tensor(name)) for name in names}
    except FileNotFoundError:
        raise VoiceError(f"there is no {path}") from None
    except (OSError, SafetensorError) as error:
        raise VoiceError(f"{path}: {error!s:.200}") from None  # it may quote the whole header
    if metadata.get("format") != FORMAT:
        raise VoiceError(f"{path}: is not a voice")
    if metadata.get("version") != VERSION:
        version = excerpt(str(metadata.get("version")))
        raise VoiceError(f"{path}: is of version {version}, not {VERSION!r}: add it anew")
    missing = [name for name in _TENSORS if name not in tensors]
    unknown = sorted(tensors.keys() - {*_TENSORS, _OPTIONAL})
    if missing or unknown:
        found = [f"misses {name}" for name in missing]
        found += [f"has an unknown {excerpt(name)[1:-1]}" for name in unknown[:3]]
        raise VoiceError(f"{path}: {', '.join(found)}")
    try:
        return Voice(
            name=metadata["name"],
            prompt_text=metadata["prompt_text"],
            gain=float(metadata["gain"]) if metadata["gain"] else None,
            created=metadata["created"],
            source_rate=int(metadata["source_rate"]),
            seconds=float(metadata["seconds"]),
            **tensors,
        )
    except KeyError as error:
        raise VoiceError(f"{path}: its metadata has no {error}") from None
    except (ValueError, VoiceError) as error:
        raise VoiceError(f"{path}: {error!s:.300}") from None


def voices_of(pack: Path) -> dict[str, Voice]:
    """The voices of the pack in the folder ``pack``, by name, in order.

    Raises:
        VoiceError: A file is not a valid voice, or its name is not its voice's. The message lists
            all problems.
    """
    voices: dict[str, Voice] = {}
    problems: list[str] = []
    for path in files(pack):
        try:
            voice = load(path)
        except VoiceError as error:
            problems.append(str(error))
            continue
        if voice.name != path.stem:
            problems.append(f"{path}: holds the voice {voice.name!r}: the names must be equal")
        voices[voice.name] = voice
    if problems:
        raise VoiceError("\n".join(problems))
    return voices


def files(pack: Path) -> list[Path]:
    """The voice files of the pack, sorted, whether they are valid or not."""
    return sorted((pack / FOLDER).glob(f"[!.]*{SUFFIX}"))


def sft_speakers(path: Path) -> dict[str, Voice]:
    """The speakers in upstream's ``spk2info.pt``, by name. Empty if there is no such file.

    An entry has an ``embedding``, and perhaps what upstream's ``add_zero_shot_spk`` saves too: the
    prompt's text tokens, speech tokens and mel. ``PUBLISHED_SPEAKERS`` gives the published names
    their ASCII form.

    Raises:
        VoiceError: The file or an entry is invalid, or a name is not a valid voice name.
    """
    import torch  # noqa: PLC0415  (only this file needs it)

    if not path.is_file():
        return {}
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise VoiceError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(content, Mapping):
        raise VoiceError(f"{path}: is not a mapping of names to speakers")
    voices: dict[str, Voice] = {}
    for key, entry in cast("Mapping[object, object]", content).items():
        name = PUBLISHED_SPEAKERS.get(str(key), str(key))
        if not isinstance(entry, Mapping):
            raise VoiceError(f"{path}: {name} is not a mapping of fields to tensors")
        try:
            voices[name] = _speaker(name, cast("Mapping[str, Any]", entry))
        except VoiceError as error:
            raise VoiceError(f"{path}: {error}") from None
    return voices


def _speaker(name: str, entry: Mapping[str, Any]) -> Voice:
    import torch  # noqa: PLC0415  (only this file needs it)

    from voicefleet.worker.engines.cosyvoice2.tensors import is_plain  # noqa: PLC0415

    def array(field: str, dtype: type[np.generic]) -> NDArray[Any]:
        """Remove the batch dimension of 1, which old embeddings may lack."""
        tensor = entry[field]
        if not is_plain(tensor):
            plain = "plain " if isinstance(tensor, torch.Tensor) else ""
            raise VoiceError(f"{name}: {field} is no {plain}tensor")
        values = np.asarray(tensor.detach().float().numpy(), dtype=dtype)
        return values[0] if values.ndim > 1 and len(values) == 1 else values

    def tokens(field: str) -> NDArray[np.int64]:
        return array(field, np.int64) if field in entry else no_tokens()

    embedding = "embedding" if "embedding" in entry else "flow_embedding"
    if embedding not in entry:
        raise VoiceError(f"{name}: has neither an embedding nor a flow_embedding")
    mel = "prompt_speech_feat"
    return Voice(
        name=name,
        speaker=array(embedding, np.float32),
        prompt_text_tokens=tokens("prompt_text") if "prompt_text" in entry else None,
        speech_tokens=tokens("llm_prompt_speech_token"),
        flow_tokens=tokens("flow_prompt_speech_token"),
        mel=array(mel, np.float32) if mel in entry else no_frames(),
    )
