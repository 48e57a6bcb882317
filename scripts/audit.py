"""Look every pinned dependency up in a database of known defects, with pip-audit.

    .venv/bin/python scripts/audit.py [--if-possible] [--advisory] [constraints/FILE.txt ...]

Exit code 0: looked up, nothing found. 1: defects found that constraints/audit-exceptions.toml does not accept. 2: that
file is broken. 4: not everything could be looked up, which is never a pass; with --if-possible (what `make check` uses)
that is said and the exit code is 0. It ends within two minutes, whatever the network does.

pip-audit is the one on PATH, else one that is installed into .venv-audit from constraints/pip-audit.txt. It is asked
about a package with published defects first: pip-audit reports success where its service knows nothing of what it is
asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints"
EXCEPTIONS = CONSTRAINTS / "audit-exceptions.toml"
TOOL_PINS = CONSTRAINTS / "pip-audit.txt"
ENVIRONMENT = ROOT / ".venv-audit"
LIMIT_SECONDS = 110.0
CANARY = ("jinja2", "2.11.2")
"""A version whose defects were published years ago (CVE-2020-28493 and later ones): a service that does not know them
tells nothing about ours."""
SERVICES = ("pypi", "osv")
AT_ONCE = 80
"""Packages that one pip-audit process looks up; it asks about one after the other, so several run at a time."""
PROCESSES = 4
SHOWN = 5
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!_-]+)(?:\+[A-Za-z0-9._-]+)?$")


class NotAuditedError(Exception):
    """Why something could not be looked up."""


@dataclass(frozen=True)
class Defect:
    """One advisory that holds for one pin. `ids` are all of its names."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed: tuple[str, ...]


@dataclass
class Answers:
    """What pip-audit said: defects, and the packages that its service does not know."""

    defects: list[Defect] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    known: int = 0


@dataclass(frozen=True)
class Accepted:
    """One entry of audit-exceptions.toml."""

    package: str
    id: str
    reason: str
    until: date


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(paths: Sequence[Path]) -> dict[tuple[str, str], list[str]]:
    """(package, version) -> the files that pin it. A local build (2.13.0+cpu) has no entry of its own anywhere."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            match = PIN.match(text)
            if match is None:
                raise NotAuditedError(f"{path.name}: {text!r} is no pin (name==version)")
            found.setdefault((normal(match[1]), match[2]), []).append(path.name)
    if not found:
        raise NotAuditedError("there are no pins to look up")
    return found


def groups(wanted: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Parts of at most AT_ONCE pins in which no package is twice: pip-audit takes two versions of one for an error."""
    parts: list[list[tuple[str, str]]] = []
    for pin in wanted:
        for part in parts:
            if len(part) < AT_ONCE and all(pin[0] != name for name, _ in part):
                part.append(pin)
                break
        else:
            parts.append([pin])
    return parts


def accepted(path: Path) -> list[Accepted]:
    """The exceptions; `ValueError` for a file that is broken."""
    if not path.is_file():
        return []
    found = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", []):
        given = {key: entry.get(key) for key in ("package", "id", "reason", "until")}
        texts = [given[key] for key in ("package", "id", "reason")]
        if not all(isinstance(text, str) and text.strip() for text in texts) or type(given["until"]) is not date:
            raise ValueError("each [[accepted]] needs package, id, reason (texts) and until (a date)")
        found.append(Accepted(normal(given["package"]), given["id"], given["reason"], given["until"]))
    return found


class Audit:
    """Runs pip-audit before a deadline."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def run(self, command: Sequence[str | Path]) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; the command and its children are killed at the deadline."""
        left = self._ends - time.monotonic()
        try:
            if left <= 0:
                raise subprocess.TimeoutExpired(str(command[0]), 0)
            with subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    out, err = process.communicate(timeout=left)
                except BaseException:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
        except subprocess.TimeoutExpired:
            raise NotAuditedError(f"{Path(command[0]).name} did not end within {LIMIT_SECONDS:.0f} s in all") from None
        except OSError as error:
            raise NotAuditedError(f"{command[0]} cannot be run: {error.strerror or error}") from None
        return process.returncode, out, err

    def tool(self) -> Path:
        """pip-audit, installed if need be."""
        there = shutil.which("pip-audit")
        if there is not None:
            return Path(there)
        stamp, tool = ENVIRONMENT / ".made-from", ENVIRONMENT / "bin" / "pip-audit"
        wanted = hashlib.sha256(TOOL_PINS.read_bytes()).hexdigest()
        if tool.is_file() and stamp.is_file() and stamp.read_text() == wanted:
            return tool
        print("audit: installing pip-audit into .venv-audit ...", flush=True)
        install = "install -qq --no-input --disable-pip-version-check --retries 1 --timeout 15 --no-deps -r".split()
        python = ENVIRONMENT / "bin" / "python"
        commands: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", "--clear", ENVIRONMENT],
            [python, "-m", "pip", *install, TOOL_PINS],
        ]
        for command in commands:
            code, _, err = self.run(command)
            if code:
                raise NotAuditedError(f"pip-audit cannot be installed here ({last_line(err)})")
        stamp.write_text(wanted)
        return tool

    def ask(self, tool: Path, service: str, wanted: Sequence[tuple[str, str]]) -> Answers:
        """What the service knows of these pins."""
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "pins.txt"
            listed.write_text("".join(f"{name}=={version}\n" for name, version in wanted))
            # --no-deps: everything is pinned already. --disable-pip: nothing of it is downloaded.
            options = (
                "--no-deps --disable-pip --progress-spinner off --timeout 15 --format json --vulnerability-service"
            )
            code, out, err = self.run([tool, *options.split(), service, "--requirement", listed])
        if code not in (0, 1):
            raise NotAuditedError(f"{service}: {last_line(err) or f'pip-audit ended with exit code {code}'}")
        try:
            found = answers(json.loads(out))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotAuditedError(f"{service}: {last_line(err) or 'pip-audit printed no JSON'}") from None
        missing = len(wanted) - found.known - len(found.unknown)
        if missing > 0:
            raise NotAuditedError(f"{service}: pip-audit says nothing of {missing} packages")
        return found

    def service(self, tool: Path) -> str:
        """The first service that knows the canary's defects."""
        why = []
        for name in SERVICES:
            try:
                found = self.ask(tool, name, [CANARY])
                if found.defects:
                    return name
                lacks = "published defects of " if found.known else ""
                why.append(f"{name}: does not know {lacks}{'=='.join(CANARY)}")
            except NotAuditedError as error:
                why.append(str(error))
        raise NotAuditedError("no database of defects can be reached; " + "; ".join(why))


def answers(value: dict[str, list[dict[str, object]]]) -> Answers:
    """pip-audit's JSON."""
    found = Answers()
    for package in value["dependencies"]:
        name = normal(str(package["name"]))
        if "skip_reason" in package:
            found.unknown.append(name)
            continue
        found.known += 1
        vulnerabilities = package["vulns"]
        if not isinstance(vulnerabilities, list):
            raise TypeError("vulns")
        for entry in vulnerabilities:
            ids = (entry["id"], *entry.get("aliases", ()))
            found.defects.append(Defect(name, str(package["version"]), ids, tuple(entry.get("fix_versions", ()))))
    return found


def last_line(text: str) -> str:
    """The last line of what a program printed, short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shown(lines[-1][:200]) if lines else ""


def shown(text: str) -> str:
    """Without what a terminal would obey: the text comes from the network."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def report(found: Answers, wanted: dict[tuple[str, str], list[str]], exceptions: list[Accepted], today: date) -> int:
    """Print every defect; how many are not accepted."""
    open_ = 0
    used = set()
    for defect in sorted(set(found.defects), key=lambda d: (d.package, d.version, d.ids)):
        rule = next((e for e in exceptions if e.package == defect.package and e.id in defect.ids), None)
        if rule is not None:
            used.add(rule)
        fixed = f"fixed in {', '.join(defect.fixed)}" if defect.fixed else "no fixed version"
        where = ", ".join(wanted.get((defect.package, defect.version), ()))
        line = shown(f"{defect.package} {defect.version}: {' '.join(defect.ids)}, {fixed} ({where})")
        if rule is not None and rule.until >= today:
            print(f"accepted until {rule.until}: {line}: {rule.reason}")
        else:
            open_ += 1
            print(f"DEFECT: {line}" + (f"; accepted until {rule.until}, which is past" if rule else ""))
    for rule in exceptions:
        if rule not in used and not found.unknown:
            print(f"{EXCEPTIONS.name}: {rule.package} {rule.id} is not found any more; take the entry out")
    return open_


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--if-possible", action="store_true", help="what cannot be looked up is said, and no failure")
    parser.add_argument("--advisory", action="store_true", help="defects are printed, and no failure either")
    parser.add_argument("--exceptions", type=Path, default=EXCEPTIONS, help=f"default: {EXCEPTIONS.name}")
    parser.add_argument("files", nargs="*", type=Path, help="default: all of constraints/*.txt")
    given = parser.parse_args(arguments)
    try:
        exceptions = accepted(given.exceptions)
    except ValueError as error:  # what tomllib raises is one
        print(f"audit: error: {given.exceptions}: {error}", file=sys.stderr)
        return 2
    found = Answers()
    unsaid = ""
    wanted: dict[tuple[str, str], list[str]] = {}
    try:
        wanted = pins(given.files or sorted(CONSTRAINTS.glob("*.txt")))
        audit = Audit(LIMIT_SECONDS)
        tool = audit.tool()
        service = audit.service(tool)
        print(f"audit: asking {service} about {len(wanted)} pinned packages ...", flush=True)
        with ThreadPoolExecutor(PROCESSES) as pool:
            for job in [pool.submit(audit.ask, tool, service, part) for part in groups(sorted(wanted))]:
                try:
                    part = job.result()
                except NotAuditedError as error:
                    unsaid = str(error)
                    continue
                found.defects += part.defects
                found.unknown += part.unknown
                found.known += part.known
    except NotAuditedError as error:
        unsaid = str(error)
    open_ = report(found, wanted, exceptions, datetime.now(UTC).date())
    if found.unknown:
        names = ", ".join(sorted(set(found.unknown))[:SHOWN]) + (", ..." if len(set(found.unknown)) > SHOWN else "")
        unsaid = unsaid or f"the service does not know {len(found.unknown)} of {len(wanted)} packages: {names}"
    print(f"audit: {found.known} of {len(wanted)} packages looked up, {open_} defects", flush=True)
    if unsaid:
        print(f"NOT AUDITED: {unsaid}", file=sys.stderr)
        if not open_ and not given.if_possible:
            print("  `make audit` where pypi.org or api.osv.dev can be reached does it.", file=sys.stderr)
    if open_:
        print(
            f"  raise the pins, or accept a defect with reason and date in constraints/{EXCEPTIONS.name}",
            file=sys.stderr,
        )
        return 0 if given.advisory else 1
    return 4 if unsaid and not given.if_possible else 0


if __name__ == "__main__":
    sys.exit(main())
