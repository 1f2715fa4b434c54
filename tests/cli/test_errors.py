"""What goes wrong between the command line and a server: one line that says what to do."""

import json
import socket
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from tests.harness import tls
from tests.harness.cli_process import TONE, rest_of, running
from voicefleet.cli.advice import advice
from voicefleet.embedded_server import HOST, EmbeddedServer
from voicefleet.producer.errors import ServerRefused

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


async def failure(*args: str, **environ: str) -> str:
    """The one line that a command says when it fails."""
    async with running(*args, **environ) as process:
        output = await rest_of(process.stderr)
        assert await process.wait() == 1
    assert output.startswith("voicefleet: ") and output.count("\n") == 1, output
    return output


@pytest.fixture
def nobody() -> Generator[int]:
    """A port of ours where nobody listens."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]


async def test_a_server_that_is_down(nobody: int) -> None:
    for kind, path in (("", ""), ("+cluster", ""), ("+sentinel", "/name")):
        output = await failure("workers", "--redis-url", f"redis{kind}://{HOST}:{nobody}{path}")
        assert f"{HOST}:{nobody}" in output and len(output) < 400
        assert "is it running? `voicefleet up` starts one; --redis-url" in output


async def test_the_doctor_gives_the_same_advice(nobody: int) -> None:
    args = ("doctor", "--json", "--redis-url", f"redis://{HOST}:{nobody}")
    async with running(*args) as process:
        (found, *_) = json.loads(await rest_of(process.stdout))
        assert await process.wait() == 1
    assert found["grade"] == "fail" and "`voicefleet up` starts one" in found["advice"]


async def test_a_server_without_resp3() -> None:
    async with EmbeddedServer.start(config=['rename-command HELLO ""']) as server:
        output = await failure("workers", "--redis-url", server.url)
    assert "does not know RESP3 (HELLO 3): it must be Redis 7, Valkey 8 or newer" in output


@pytest.mark.parametrize("user", ["", ":wrong@", "nobody:wrong@"])
async def test_credentials_that_are_missing_or_wrong(user: str) -> None:
    async with EmbeddedServer.start(password="right") as server:
        output = await failure("workers", "--redis-url", f"redis://{user}{HOST}:{server.port}")
    assert "VOICEFLEET_REDIS_USERNAME and VOICEFLEET_REDIS_PASSWORD" in output


async def test_permissions_that_are_missing() -> None:
    rights = "user app on >pw ~tts:* &* +@connection +info"
    async with EmbeddedServer.start(config=[rights]) as server:
        output = await failure("workers", "--redis-url", f"redis://app:pw@{HOST}:{server.port}")
    assert "`voicefleet doctor` says which permissions this user lacks" in output


def test_other_refusals_have_no_advice() -> None:
    assert advice(ServerRefused("WRONGTYPE")) == ""


async def test_tls_to_a_port_that_speaks_none() -> None:
    async with EmbeddedServer.start() as server:
        with anyio.fail_after(30):
            output = await failure("workers", "--redis-url", f"rediss://{HOST}:{server.port}")
    assert "does not speak TLS: write redis://, not rediss://" in output


@pytest.mark.parametrize("clients", ["yes", "optional"])
async def test_no_tls_to_a_port_that_speaks_nothing_else(tmp_path: Path, clients: str) -> None:
    files = tls.Authority(tmp_path / "ca").issue("server")
    config = [f"tls-auth-clients {clients}"]
    async with EmbeddedServer.start(binary=tls.binary(), tls=files, config=config) as server:
        output = await failure("workers", "--redis-url", f"redis://{HOST}:{server.port}")
    assert "speaks only TLS: write rediss://, not redis://" in output


@pytest.fixture
async def web_server() -> AsyncGenerator[int]:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host=HOST)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_a_port_of_something_else(web_server: int) -> None:
    output = await failure("workers", "--redis-url", f"redis://{HOST}:{web_server}")
    assert "is not Redis" in output


async def test_a_prefix_that_cannot_be() -> None:
    output = await failure("workers", "--prefix", "a {b}")
    assert "the prefix 'a {b}' cannot be one" in output and "VOICEFLEET_REDIS_PREFIX" in output
    output = await failure("workers", VOICEFLEET_REDIS_TIMEOUT_S="soon")
    assert output.startswith("voicefleet: VOICEFLEET_REDIS_TIMEOUT_S: ")


async def test_up_on_a_port_that_is_taken() -> None:
    async with EmbeddedServer.start() as server:
        output = await failure("up", "--config", TONE, "--port", str(server.port))
    assert output == (
        f"voicefleet: port {server.port} is in use: "
        "choose another --port, or leave it out for a free one\n"
    )
