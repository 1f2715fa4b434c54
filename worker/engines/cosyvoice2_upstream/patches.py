"""Patches upstream's defects at run time, in the loaded model. Its files are not changed.

Each patch checks what upstream's code does, not its version, and is left out if the defect is not
there. No patch makes upstream compute anything else than it intends.
"""

import dis
import functools
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Final, cast

import torch

from voicefleet.worker.engines.cosyvoice2_upstream.request import current, working_on

Model = Any
"""Upstream's ``CosyVoice2Model``."""


@dataclass(frozen=True)
class Patch:
    """A defect: its name, whether a model has it, and the function that fixes it."""

    name: str
    needed: Callable[[Model], bool]
    apply: Callable[[Model], None]


def apply_all(model: Model) -> tuple[str, ...]:
    """Apply all needed patches to a loaded model; return their names."""
    applied: list[str] = []
    for each in PATCHES:
        if each.needed(model):
            each.apply(model)
            applied.append(each.name)
    return tuple(applied)


def forget(model: Model, key: str) -> None:
    """Drop what ``tts`` keeps of a request, which it leaks if it is not run to its end."""
    with model.lock:
        fields = cast("dict[str, Any]", vars(model))
        for name, entries in fields.items():
            if name.endswith("_dict") and isinstance(entries, dict):
                cast("dict[str, Any]", entries).pop(key, None)


# hop-reset: tts doubles the model's token_hop_len during a request and never resets it, so that
# the second request's first chunk is as large as the first one's last, and concurrent requests grow
# each other's. With the patch each request has its own.


def _grows_hop(model: Model) -> bool:
    return any(
        step.opname == "STORE_ATTR" and step.argval == "token_hop_len"
        for step in dis.get_instructions(_kind(model).tts)
    )


def _own_hop(model: Model) -> None:
    kind, first = _kind(model), model.token_hop_len

    def get(_: Model) -> int:
        request = current()
        return first if request is None or request.hop is None else request.hop

    def put(_: Model, hop: int) -> None:
        request = current()
        if request is not None:
            request.hop = hop

    # The class keeps its name, which upstream checks.
    model.__class__ = type(kind.__name__, (kind,), {"token_hop_len": property(get, put)})


# polling: tts polls for new tokens every 100 ms. With the patch each token wakes it.


def _polls(model: Model) -> bool:
    return _calls(_kind(model).tts, "sleep")


def _tell(model: Model) -> None:
    def sleep(seconds: float) -> None:
        request = current()
        time.sleep(seconds) if request is None else request.wait(seconds)

    _globals(model)["time"] = _ModuleProxy(time, sleep=sleep)


# language-model-thread: its exceptions are lost, and tts waits for its tokens for ever; if tts is
# closed early, the thread still runs to its end. With the patch either one ends the other.


def _starts_thread(model: Model) -> bool:
    return _calls(_kind(model).tts, "Thread")


def _bind_thread(model: Model) -> None:
    _globals(model)["threading"] = _ModuleProxy(threading, Thread=_RequestThread)
    inference = model.llm.inference

    def until_cancelled(*args: Any, **kwargs: Any) -> Generator[Any]:
        request = current()
        tokens = inference(*args, **kwargs)
        try:
            for token in tokens:
                yield token
                if request is not None:
                    request.news.set()
                    if request.cancelled:
                        return
        finally:
            tokens.close()
            if request is not None and request.cancelled and hasattr(model.llm, "vllm"):
                _abort(model.llm, kwargs["uuid"])

    model.llm.inference = until_cancelled


def _abort(llm: Any, key: str) -> None:
    """Abort the request in vLLM, which would continue it with every step of other requests."""
    with llm.lock:
        llm.vllm.abort_request([key])
        llm.vllm_output_queue.pop(key, None)


class _RequestThread(threading.Thread):
    """A thread that works on the same request as the thread that created it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, daemon=True)
        self._request = current()
        if self._request is not None:
            self._request.key = kwargs["args"][-1]
            self._request.thread = self

    def run(self) -> None:
        request = self._request
        if request is None:
            super().run()
            return
        with working_on(request):
            try:
                super().run()
            except BaseException as error:
                request.fail(error)
            finally:
                request.news.set()

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._request is not None and current() is self._request:
            self._request.check()


# empty-cache: after each request all free memory is returned to the driver, which synchronises the
# device and makes the next request allocate again.


def _empties_cache(model: Model) -> bool:
    return _calls(_kind(model).tts, "empty_cache")


def _keep_cache(model: Model) -> None:
    class Done:
        """Replaces the stream to synchronise: each chunk is on the host by then."""

        def synchronize(self) -> None: ...

    def nothing() -> None: ...

    cuda = _ModuleProxy(torch.cuda, empty_cache=nothing, current_stream=Done)
    _globals(model)["torch"] = _ModuleProxy(torch, cuda=cuda)


# decode-mask: the decode step passes a mask of length 1 with a longer cache; transformers 4.53 and
# later take it for the mask of the whole sequence. A single sequence needs no mask.


def _misreads_mask(model: Model) -> bool:
    """Whether decoding a sequence token by token differs from one pass over all of it."""
    body = model.llm.llm
    if hasattr(model.llm, "vllm"):
        return False
    weights = body.model.get_input_embeddings().weight
    with torch.inference_mode(), torch.autocast(weights.device.type, enabled=False):
        sequence = weights[:6].unsqueeze(0)
        lower = torch.ones(1, 6, 6, dtype=torch.bool, device=weights.device).tril()
        whole = body.forward_one_step(sequence, masks=lower, cache=None)[0][:, -1]
        cache, last = None, whole
        for at, width in ((0, 3), (3, 1), (4, 1), (5, 1)):
            piece = sequence[:, at : at + width]
            out, cache = body.forward_one_step(piece, masks=lower[:, :width, :width], cache=cache)
            last = out[:, -1]
        return float((whole - last).norm() / whole.norm()) > 0.01


def _no_mask(model: Model) -> None:
    body = model.llm.llm

    def forward_one_step(xs: Any, masks: Any, cache: Any = None) -> tuple[Any, Any]:
        out = body.model(
            inputs_embeds=xs,
            attention_mask=None,
            output_hidden_states=True,
            return_dict=True,
            use_cache=True,
            past_key_values=cache,
        )
        return out.hidden_states[-1], out.past_key_values

    body.forward_one_step = forward_one_step


# seeds: tokens and noise are drawn from torch's global generator, by concurrent threads. With the
# patch each request has its own state for tokens, swapped into the global generator for each draw,
# and its own generator for the vocoder's noise.


def _draws_unseeded(model: Model) -> bool:
    return not hasattr(model.llm, "vllm")


def _seed(model: Model) -> None:
    sampling, device, lock = model.llm.sampling, torch.device(model.device), threading.Lock()
    source = (
        torch.cuda.default_generators[torch.cuda.current_device()]
        if device.type == "cuda"
        else torch.default_generator
    )

    @functools.wraps(sampling.func if isinstance(sampling, functools.partial) else sampling)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        request = current()
        if request is None:
            return sampling(*args, **kwargs)
        with lock:
            source.set_state(request.sampling)
            try:
                return sampling(*args, **kwargs)
            finally:
                request.sampling = source.get_state()

    model.llm.sampling = seeded

    def rand(*size: int, **options: Any) -> torch.Tensor:
        return torch.rand(*size, **options, generator=_noise())

    def randn_like(like: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(like).normal_(generator=_noise())

    vocoder = _globals_of(_kind(model.hift).inference)
    vocoder["torch"] = _ModuleProxy(torch, rand=rand, randn_like=randn_like)


def _noise() -> torch.Generator | None:
    request = current()
    return None if request is None else request.noise


PATCHES: Final = (
    Patch("hop-reset", _grows_hop, _own_hop),
    Patch("language-model-thread", _starts_thread, _bind_thread),
    Patch("polling", _polls, _tell),
    Patch("empty-cache", _empties_cache, _keep_cache),
    Patch("decode-mask", _misreads_mask, _no_mask),
    Patch("seeds", _draws_unseeded, _seed),
)


class _ModuleProxy:
    """A proxy of a module with some names replaced, for the globals of one module."""

    def __init__(self, module: ModuleType, **names: object) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _kind(thing: Any) -> type[Any]:
    return cast("type[Any]", type(thing))


def _calls(function: Callable[..., Any], name: str) -> bool:
    return name in _plain(function).__code__.co_names


def _globals(model: Model) -> dict[str, Any]:
    """The globals of the module that defines ``tts``."""
    return _globals_of(_kind(model).tts)


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    return _plain(function).__globals__


def _plain(function: Callable[..., Any]) -> FunctionType:
    """The function without its decorators."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    return cast("FunctionType", function)
