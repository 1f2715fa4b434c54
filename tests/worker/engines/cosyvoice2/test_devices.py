"""What is settled for a device before anything runs, and which attention kernels are taken."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the cosyvoice extra (torch)")

import torch.nn.functional as F
from structlog.testing import capture_logs
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.worker.engines.cosyvoice2.driving import Driver
from voicefleet.worker.engines.cosyvoice2 import devices
from voicefleet.worker.engines.cosyvoice2.attention import AttentionRecorder


@pytest.fixture(autouse=True)
def _as_torch_has_it() -> Iterator[None]:
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_attention_never_goes_to_cudnn() -> None:
    """The switch is torch's own, for all devices of the process."""
    assert torch.backends.cuda.cudnn_sdp_enabled()
    devices.configure(torch.device("cpu"), torch.float32, threads=0)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_loading_settles_it(tiny_pack: Any) -> None:
    Driver(tiny_pack, slots=1, flow_cache_mb=64)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_kernel_of_each_shape_is_known() -> None:
    x = torch.randn(1, 2, 5, 16)
    with AttentionRecorder() as census:
        F.scaled_dot_product_attention(x, x, x)
        F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(1, 1, 1, 5))
        with sdpa_kernel(SDPBackend.MATH):
            F.scaled_dot_product_attention(x[:, :, :3], x, x)
    F.scaled_dot_product_attention(x[:, :, :2], x, x)
    assert dict(census.shapes) == {
        "flash_attention": ("float32 [1, 2, 5, 16] x [1, 2, 5, 16]",),
        "math": ("float32 [1, 2, 3, 16] x [1, 2, 5, 16]",),
    }


@torch.inference_mode()
def test_warm_up_logs_the_kernels(tiny_pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At debug, one line. Without graphs nothing runs before the rehearsal, so one step is run."""
    driver = Driver(tiny_pack, slots=1, flow_cache_mb=64)
    loaded = driver.core._runner
    monkeypatch.setattr(type(loaded.decoder), "warm_up", lambda self, _: self.dry_run())
    with capture_logs() as lines:
        loaded.warm_up()
    (line,) = [line for line in lines if line["event"] == "attention_kernels"]
    assert line["log_level"] == "debug"
    assert any(" x [1, " in shape for shape in line["flash_attention"])
