"""scripts/audit.py with a pip-audit that says what it is told to."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import audit

FAKE = """#!{python}
import json, os, sys, time
words = sys.argv[1:]
rule = json.load(open({rule!r}))
service = words[words.index("--vulnerability-service") + 1]
if service in rule.get("hangs", ()):
    os.system("sleep 60")
if service in rule.get("down", ()):
    sys.exit("ConnectionError: no such host")
found = []
for line in open(words[words.index("--requirement") + 1]):
    name, version = line.strip().split("==")
    if name in rule.get("silent", ()):
        continue
    if name in rule.get("unknown", ()):
        found.append({{"name": name, "skip_reason": "not found"}})
    else:
        found.append({{"name": name, "version": version, "vulns": rule["vulns"].get(name + "==" + version, [])}})
if not rule.get("mute"):
    print(json.dumps({{"dependencies": found, "fixes": []}}))
sys.exit(any(package.get("vulns") for package in found))
"""
DEFECT = {"id": "PYSEC-2099-1", "aliases": ["CVE-2099-1"], "fix_versions": ["2.0", "1.9.1"], "description": "\x1b[2J"}
CANARY = {"jinja2==2.11.2": [{"id": "PYSEC-2021-66", "aliases": [], "fix_versions": ["2.11.3"]}]}
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script over two pins; keywords are the fake's rule."""
    (tmp_path / "bin").mkdir()
    fake, rule, pins = tmp_path / "bin/pip-audit", tmp_path / "rule.json", tmp_path / "pins.txt"
    fake.write_text(FAKE.format(python=sys.executable, rule=str(rule)))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    pins.write_text("# made by somebody\nGood_Thing==1.0\nbad.thing==1.2+cpu\n")

    def go(*arguments: str, exceptions: str = "", vulns: dict[str, object] | None = None, **how: object) -> int:
        rule.write_text(json.dumps({"vulns": {**CANARY, **(vulns or {})}, **how}))
        listed = tmp_path / "exceptions.toml"
        listed.write_text(exceptions)
        return audit.main([*arguments, "--exceptions", str(listed), str(pins)])

    return go


def accept(until: str) -> str:
    return f'[[accepted]]\npackage = "Bad_Thing"\nid = "CVE-2099-1"\nreason = "never called"\nuntil = {until}\n'


BAD: dict[str, object] = {"bad-thing==1.2": [DEFECT]}


def test_clean(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "2 of 2 packages looked up, 0 defects" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [(), ("--if-possible",)])
def test_a_defect_is_named_and_fails(mode: tuple[str, ...], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*mode, vulns=BAD) == 1
    out = capsys.readouterr().out
    assert "DEFECT: bad-thing 1.2: PYSEC-2099-1 CVE-2099-1, fixed in 2.0, 1.9.1 (pins.txt)" in out
    assert "good-thing" not in out


def test_an_accepted_defect_passes_until_its_day(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(vulns=BAD, exceptions=accept("2999-01-01")) == 0
    assert "accepted until 2999-01-01: bad-thing 1.2" in capsys.readouterr().out
    assert run(vulns=BAD, exceptions=accept("2020-01-01")) == 1
    assert "which is past" in capsys.readouterr().out
    assert run(exceptions=accept("2999-01-01")) == 0
    assert "take the entry out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["[[accepted]]\npackage = 'x'\nid = 'y'\nuntil = 2999-01-01\n", accept('"2999-01-01"'), "[[accepted"]
)
def test_an_exception_without_reason_or_date(text: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(exceptions=text) == 2
    assert "exceptions.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"unknown": ["jinja2", "good-thing", "bad-thing"]}, "pypi: does not know jinja2==2.11.2"),
        ({"vulns": {"jinja2==2.11.2": []}}, "does not know published defects of jinja2"),
        ({"unknown": ["good-thing"]}, "does not know 1 of 2 packages: good-thing"),
        ({"silent": ["good-thing"]}, "says nothing of 1 packages"),
        ({"down": ["pypi", "osv"]}, "osv: ConnectionError: no such host"),
        ({"mute": True}, "printed no JSON"),
    ],
)
def test_what_is_not_looked_up_is_no_pass(
    how: dict[str, object], why: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(**how) == 4
    err = capsys.readouterr().err
    assert "NOT AUDITED: " in err
    assert why in err
    assert run("--if-possible", **how) == 0
    assert "NOT AUDITED" in capsys.readouterr().err


def test_a_defect_counts_although_another_package_is_unknown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--if-possible", vulns=BAD, unknown=["good-thing"]) == 1
    assert run("--if-possible", "--advisory", vulns=BAD, unknown=["good-thing"]) == 0
    printed = capsys.readouterr()
    assert "DEFECT" in printed.out
    assert "NOT AUDITED" in printed.err


def test_the_second_service_is_asked_where_the_first_is_down(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(down=["pypi"]) == 0
    assert "asking osv" in capsys.readouterr().out


def test_a_tool_that_never_ends(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LIMIT_SECONDS", 1.0)
    began = time.monotonic()
    assert run(hangs=["pypi", "osv"]) == 4
    assert time.monotonic() - began < 10
    assert "did not end within 1 s" in capsys.readouterr().err


def test_a_line_that_is_no_pin(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pins.txt").write_text("good-thing>=1\n")
    assert run() == 4
    assert "is no pin" in capsys.readouterr().err


def test_groups_hold_no_package_twice() -> None:
    pins = [(f"p{number % 150}", str(number)) for number in range(400)]
    parts = audit.groups(pins)
    assert sorted(pin for part in parts for pin in part) == sorted(pins)
    for part in parts:
        assert len(part) <= audit.AT_ONCE
        assert len({name for name, _ in part}) == len(part)


def test_the_shipped_files_are_whole() -> None:
    audit.accepted(audit.EXCEPTIONS)
    assert audit.pins(sorted(audit.CONSTRAINTS.glob("*.txt")))
