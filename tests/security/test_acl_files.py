"""The files of ``deploy/redis`` themselves, without a server."""

import re
from pathlib import Path

import pytest

from tests.harness.acl import FOLDER, set_password
from tests.harness.fleet import ROOT
from voicefleet.cli.permissions import roles
from voicefleet.schemas import Keys


class TestPasswords:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "users.acl"
        path.write_text((FOLDER / "users.acl").read_text())
        path.chmod(0o640)
        return path

    def test_the_file_holds_the_hash_alone(self, file: Path) -> None:
        before = file.read_text().splitlines()
        secret = "s/e&c\\r*e t of 20 characters"
        assert set_password(file, "worker", secret).returncode == 0
        after = file.read_text().splitlines()
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert [old.split()[1] for old, _ in changed] == ["worker"]
        assert secret not in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o640
        assert [path.name for path in file.parent.iterdir()] == ["users.acl"]

    @pytest.mark.parametrize(
        ("user", "secret", "problem"),
        [
            ("worker", "short", "16 characters"),
            ("worker", "", "16 characters"),
            ("nobody", "long enough for anybody", "no user nobody"),
            ("default", "long enough for anybody", "no user default"),
            ("work.*", "long enough for anybody", "letters"),
        ],
    )
    def test_what_is_no_use_is_refused(
        self, file: Path, user: str, secret: str, problem: str
    ) -> None:
        before = file.read_text()
        done = set_password(file, user, secret)
        assert done.returncode == 1 and problem in done.stderr
        assert done.stderr.count("\n") == 1 and (not secret or secret not in done.stderr)
        assert file.read_text() == before


def _grants(user: str) -> tuple[str, set[str]]:
    """A user's line, and the commands in it."""
    (line,) = [x for x in (FOLDER / "users.acl").read_text().splitlines() if f" {user} " in x]
    return line, set(re.findall(r"\+([a-z_|]+)", line))


def test_a_worker_is_granted_nothing_that_the_code_does_not_say() -> None:
    """Beside what redis-py sends by itself, and what the doctor looks at."""
    code = "".join(
        path.read_text("utf-8").lower()
        for folder in ("worker", "wire")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua")
    )
    by_others = {"client|setname", "cluster|slots", "command", "asking", "readonly"}
    by_others |= {"info", "acl|whoami"}
    unsaid = {
        name
        for name in _grants("worker")[1] - by_others
        if not all(f'"{part}"' in code or f"'{part}'" in code for part in name.split("|"))
    }
    assert unsaid == set()


def test_a_worker_is_granted_every_command_and_key_of_its_scripts() -> None:
    line, granted = _grants("worker")
    scripts = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.lua"))
    calls = set(re.findall(r"redis\.p?call\('([A-Z]+)'", scripts))
    assert len(calls) > 20
    assert {call.lower() for call in calls} <= {name.partition("|")[0] for name in granted}
    keys = Keys("tts")
    for name in [name for name in dir(keys) if not name.startswith("_") and name != "prefix"]:
        assert re.search(rf"~tts:{name}\b", line), f"the file does not name tts:{name}"


def test_the_doctor_asks_for_each_right_that_a_worker_is_granted() -> None:
    line, _ = _grants("worker")
    granted: set[tuple[str, str]] = set()
    for selector in re.findall(r"\((.*?)\)", line):
        kinds = re.findall(r"~tts:([a-z]+)", selector)
        granted |= {(kind, name) for kind in kinds for name in re.findall(r"\+([a-z|]+)", selector)}
    root = re.sub(r"\(.*?\)", "", line)
    granted |= {("", name) for name in re.findall(r"\+([a-z|]+)", root)}
    _, worker, _ = roles(Keys("tts"))
    asked = {
        (attempt.pattern.split(":")[1] if attempt.pattern else "", attempt.name)
        for attempt in worker.attempts
    }
    # What redis-py sends by itself is of its business; the list of workers is not to be deleted.
    by_others = {"client|setname", "cluster|slots", "command", "asking", "readonly", "select"}
    by_others |= {"info", "acl|whoami"}
    not_asked = {("", name) for name in by_others} | {("workers", "del")}
    asked = {(kind, name.lower().replace(" ", "|")) for kind, name in asked}
    assert granted - not_asked == asked
