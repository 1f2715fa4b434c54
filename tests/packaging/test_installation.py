"""The pip command that an error names fits how voicefleet was installed."""

import pytest

from voicefleet import installation


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
