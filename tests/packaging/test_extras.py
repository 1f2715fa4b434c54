"""The pip command that an error names fits how voicefleet was installed."""

import pytest

from voicefleet.worker import extras


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (
            '{"url": "file:///src/my%20fleet", "dir_info": {"editable": true}}',
            "pip install -e '/src/my fleet[piper]'",
        ),
        ('{"url": "file:///src/fleet", "dir_info": {}}', "pip install '/src/fleet[piper]'"),
        (
            '{"url": "https://host/fleet.git", "vcs_info":'
            ' {"vcs": "git", "requested_revision": "v1", "commit_id": "0a"}}',
            "pip install 'voicefleet[piper] @ git+https://host/fleet.git@v1'",
        ),
        (
            '{"url": "https://host/fleet.whl", "archive_info": {}}',
            "pip install 'voicefleet[piper] @ https://host/fleet.whl'",
        ),
    ],
)
def test_the_command_installs_from_where_voicefleet_came(direct_url: str, command: str) -> None:
    assert extras.command("piper", direct_url) == command


def test_from_an_index_its_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def read_text(self, filename: str) -> None:
            return None

    monkeypatch.setattr(extras, "distribution", lambda name: Installed())
    assert extras.install("piper") == "pip install 'voicefleet[piper]'"
