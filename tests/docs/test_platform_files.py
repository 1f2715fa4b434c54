"""The hosting platform's files name targets, versions and programs that there are."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT
from tests.harness.servers import matrix

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
HOOKS = ".pre-commit-config.yaml"
FORMS = ("bug.yml", "config.yml", "feature.yml")


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def jobs() -> dict[str, Any]:
    return load(".github/workflows/ci.yml")["jobs"]


def test_ci_runs_targets_that_exist(jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {target for command in commands for target in re.findall(r"make ([\w-]+)", command)}
    assert "make ${{ matrix.target }}" in commands
    targets |= set(jobs["check"]["strategy"]["matrix"]["target"])
    assert {"test", "lint", "types", "test-engine", "test-long", "demo"} <= targets <= TARGETS
    (backend,) = re.findall(r"--backend (\w+)", "\n".join(commands))
    (step,) = (step for step in jobs["test"]["steps"] if "env" in step)
    for name, value in step["env"].items():
        monkeypatch.setenv(name, value)
    assert backend in matrix()


def test_ci_covers_each_python_and_server_that_is_promised(jobs: dict[str, Any]) -> None:
    matrix = jobs["test"]["strategy"]["matrix"]
    promised = [
        label.rpartition(" ")[2]
        for label in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", label)
    ]
    assert matrix["python"] == promised
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"
    assert matrix["server"] == ["redis:7", "redis:8", "valkey/valkey:8", "valkey/valkey:9"]


def test_local_ci_runs_targets_that_exist() -> None:
    script = (ROOT / ".ci/run").read_text()
    targets = set(re.findall(r"^check ([\w-]+)", script, re.MULTILINE))
    assert targets and targets <= TARGETS


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", ".github/pull_request_template.md"]
)
def test_documents_name_targets_that_exist(document: str) -> None:
    quoted = re.findall(r"(?:`|^    )make ([a-z -]+)", (ROOT / document).read_text(), re.MULTILINE)
    assert quoted
    for targets in quoted:
        assert set(targets.split()) <= TARGETS, targets


def test_hooks_run_what_the_lint_group_installs() -> None:
    assert load(HOOKS)["default_install_hook_types"] == ["pre-commit"]
    for repo in load(HOOKS)["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            program = Path(hook["entry"].split()[0])
            assert program.parent == Path(".venv/bin")
            if Path(sys.prefix, "bin/pre-commit").exists():
                assert Path(sys.prefix, "bin", program.name).exists(), program


@pytest.mark.parametrize("form", FORMS)
def test_issue_forms(form: str) -> None:
    found = load(f".github/ISSUE_TEMPLATE/{form}")
    if form == "config.yml":
        assert found == {"blank_issues_enabled": True}
        return
    assert found["name"] and found["description"]
    kinds = {item["type"] for item in found["body"]}
    assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    fields = [item for item in found["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in fields}) == len(fields)
    assert all(item["attributes"]["label"] for item in fields)


def test_a_change_is_asked_for_its_test_documents_and_changelog() -> None:
    template = (ROOT / ".github/pull_request_template.md").read_text()
    for word in ("test", "documents", "CHANGELOG.md"):
        assert word in template
