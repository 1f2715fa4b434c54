"""Imports upstream's package without the modules that only training and recordings need.

Importing it runs its code, and constructing the model runs what ``cosyvoice2.yaml`` names: unlike
our own engine's loader, this one trusts the model directory.
"""

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any, Final

from voicefleet.installation import install
from voicefleet.worker.engines.cosyvoice2.errors import CosyVoiceInitializationError

HOW_TO_INSTALL: Final = (
    "git clone --recursive https://github.com/FunAudioLLM/CosyVoice, and put that folder and its "
    "third_party/Matcha-TTS on PYTHONPATH"
)

NOT_FOR_SERVING: Final = (
    "cosyvoice.cli.frontend",  # reads recordings and texts, with whisper: ours does
    "cosyvoice.tokenizer.tokenizer",  # whisper, tiktoken: ours tokenises
    "cosyvoice.dataset.processor",  # pyarrow, pyworld, whisper
    "cosyvoice.hifigan.hifigan",  # the vocoder's training, with its discriminators' weights
    "cosyvoice.hifigan.discriminator",
    "cosyvoice.utils.onnx",  # speech tokens made while training
    "matcha.utils",  # hydra, lightning, gdown, wget
    "matcha.utils.pylogger",
    "matcha.utils.audio",  # librosa
    "matcha.hifigan.models",  # matplotlib
)
"""Modules that serving ready voices never calls, with the packages that they would import."""


def import_model_class() -> type[Any]:
    """Import upstream's class ``CosyVoice2``.

    Raises:
        CosyVoiceInitializationError: The package, or something that it imports, is missing.
    """
    try:
        found = importlib.util.find_spec("cosyvoice.cli") is not None
    except ImportError:
        found = False
    if not found:
        raise CosyVoiceInitializationError(
            f"implementation: upstream needs the official cosyvoice package: {HOW_TO_INSTALL}"
        )
    try:
        with stub_modules(), _logging_kept():
            # First this module alone: only here may torchaudio be a stub, as transformers, which
            # is imported later, checks for the real one.
            with _stub_if_missing("torchaudio"):
                importlib.import_module("cosyvoice.utils.file_utils")
            with _stub_if_missing("modelscope"):
                module = importlib.import_module("cosyvoice.cli.cosyvoice")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "matcha":
            remedy = "the submodule third_party/Matcha-TTS belongs on PYTHONPATH too"
        else:
            remedy = install("upstream")
        raise CosyVoiceInitializationError(
            f"upstream's package cannot be imported: {error}; {remedy}"
        ) from None
    try:
        return module.CosyVoice2
    except AttributeError:
        raise CosyVoiceInitializationError(
            f"{module.__file__} has no CosyVoice2: {HOW_TO_INSTALL}"
        ) from None


@contextlib.contextmanager
def stub_modules() -> Generator[None]:
    """In this context, importing a module of ``NOT_FOR_SERVING`` gives a stub.

    Objects that ``cosyvoice2.yaml`` constructs from these modules are stubs too.
    """
    made: list[str] = []
    try:
        for name in NOT_FOR_SERVING:
            if name not in sys.modules:
                sys.modules[name] = _StubModule(name)
                made.append(name)
            parent, _, child = name.rpartition(".")
            if parent and child not in vars(package := importlib.import_module(parent)):
                setattr(package, child, sys.modules[name])
        yield
    finally:
        for name in reversed(made):
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                delattr(sys.modules[parent], child)


@contextlib.contextmanager
def _stub_if_missing(name: str) -> Generator[None]:
    """In this context, importing ``name`` gives a stub if it is not installed."""
    missing = name not in sys.modules and importlib.util.find_spec(name) is None
    if missing:
        sys.modules[name] = _StubModule(name)
    try:
        yield
    finally:
        if missing:
            del sys.modules[name]


class Stub:
    """Any attribute of a stub module: accepts any arguments, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...


class _StubModule(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        if name == "matcha.utils":
            self.__path__ = []  # it is a package

    def __getattr__(self, name: str) -> type[Stub]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub


@contextlib.contextmanager
def _logging_kept() -> Generator[None]:
    """Restore the root logger, which upstream sets to DEBUG on import; it would log the texts."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
