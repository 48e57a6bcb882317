"""`sqtool rollout`: what it prints, its exit codes, and its guide."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from sqtool.rollout.formats import GATEWAY
from sqtool.rollout.record import FIELDS, json_schema
from sqtool.rollout.rules import RATES, Rules
from tests.cli.conftest import Sqtool
from tests.unit.rollout.conftest import lines

PAGE = Path(__file__).parents[2] / "docs/rollout.md"


def log(folder: Path, rates: dict[str, float], n: int = 3000, **more: object) -> str:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in lines(n, rates, **more)))
    return "log.jsonl"


def test_harm_is_exit_1_with_table_and_verdict(sqtool_: Sqtool, tmp_path: Path) -> None:
    said = sqtool_("rollout", log(tmp_path, {"baseline": 0.05, "w4a16": 0.2}), "--slo", "e2e_ms=3000")
    assert said.code == 1
    for text in (
        "corrected by the user",
        "end to end, ms, p99",
        "w4a16 against baseline, by requests, valid at any time",
        "e2e_ms > 3000",
        "a rise beyond the margin is shown",
        "cost per accepted answer",
        "HARM: w4a16",
        "note: no request names a user",
    ):
        assert text in said.out, text
    assert "reading log.jsonl" in said.err


def test_no_harm_and_not_decided(sqtool_: Sqtool, tmp_path: Path) -> None:
    name = log(tmp_path, {"baseline": 0.05, "w4a16": 0.05})
    wide = [f"--margin={rate}=0.3" for rate in RATES]
    said = sqtool_("rollout", name, *wide, "--require-decision", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert "NO_HARM: w4a16" in said.out
    narrow = ("--margin", "correction=0.001")
    assert sqtool_("rollout", name, *narrow).code == 0
    said = sqtool_("rollout", name, *narrow, "--require-decision")
    assert said.code == 3
    assert "KEEP_WATCHING: w4a16" in said.out


def test_json_is_one_document(sqtool_: Sqtool, tmp_path: Path) -> None:
    said = sqtool_(
        "rollout",
        log(tmp_path, {"bf16": 0.05, "b": 0.05}, 300, kind="chat"),
        "--json",
        "--by",
        "kind",
        "--baseline",
        "bf16",
    )
    assert said.json["baseline"] == "bf16"
    assert list(said.json["kinds"]) == ["chat"]
    assert said.json["source"]["format"] == "sqtool"


def test_rules_of_a_file(sqtool_: Sqtool, tmp_path: Path) -> None:
    name = log(tmp_path, {"baseline": 0.05, "b": 0.05}, 300)
    rules = tmp_path / "rules.yaml"
    rules.write_text("alpha: 0.1\nmargins:\n  correction: 0.05\n")
    said = sqtool_("rollout", name, "--rules", "rules.yaml", "--json")
    assert said.json["rules"]["alpha"] == 0.1
    assert list(said.json["verdict"]["b"]["metrics"]) == ["correction"]
    rules.write_text("alpha: 0.1\nmargins:\n  corection: 0.05\n")
    said = sqtool_("rollout", name, "--rules", "rules.yaml")
    assert said.code == 2
    assert said.err.splitlines() == [
        "Error: rules.yaml:3: margins.corection: unknown key",
        "  did you mean 'correction'?",
    ]
    rules.write_text("alpha: [\n")
    assert "rules.yaml:" in sqtool_("rollout", name, "--rules", "rules.yaml").err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none.jsonl"], "none.jsonl: no such file"),
        (["log.jsonl", "--format", "csv"], "Invalid value for '--format'"),
        (["log.jsonl", "--baseline", "base"], "no arm 'base' in the log"),
        (["log.jsonl", "--field", "arms=x"], "unknown field 'arms'"),
        (["log.jsonl", "--margin", "x=1"], "unknown name 'x'"),
        (["log.jsonl", "--rules", "none.yaml"], "none.yaml: cannot read the rules: No such file"),
        (["-", "-"], "standard input can be read once only"),
        ([], "Missing argument 'LOG...'"),
        (["empty.jsonl"], "empty.jsonl: holds no requests"),
        (["bad.jsonl"], "bad.jsonl:2: not JSON: "),
        (["half.jsonl"], "half.jsonl:1: timestamp: missing"),
        (["one.jsonl"], "one arm only, 'baseline'"),
    ],
)
def test_usage_errors_are_exit_2(sqtool_: Sqtool, tmp_path: Path, args: list[str], message: str) -> None:
    log(tmp_path, {"baseline": 0.05, "b": 0.05}, 50)
    good = '{"arm": "baseline", "timestamp": 1}\n'
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text(good + "{\n" + good)
    (tmp_path / "half.jsonl").write_text('{"arm": "baseline"}\n')
    (tmp_path / "one.jsonl").write_text(good)
    said = sqtool_("rollout", *args)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err


def test_the_schema(sqtool_: Sqtool) -> None:
    schema = sqtool_("schema", "--rollout").json
    assert schema == json_schema()
    assert sqtool_("schema", "--rollout", "--task").code == 2
    for record in lines(5, {"a": 0.5}):
        jsonschema.validate(record, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"arm": "a"}, schema)


# ---- the guide


def test_the_guide_lists_every_field_and_rule() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page.partition("## Gateway logs")[0], re.MULTILINE) == list(FIELDS)
    gateway = page.partition("## Gateway logs")[2]
    for name, places in GATEWAY.items():
        row = next(line for line in gateway.splitlines() if line.startswith(f"| `{name}` |"))
        assert [place for place in places if f"`{place}`" not in row] == []
    for key in (*Rules.model_fields, *RATES):
        assert re.search(rf"\b{key}:", page), key


def test_the_guides_log_is_read(sqtool_: Sqtool, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = [line.strip() for line in page.splitlines() if line.startswith('    {"')]
    assert len(found) >= 3
    (tmp_path / "own.jsonl").write_text("\n".join(line for line in found if '"metadata"' not in line) + "\n")
    said = sqtool_("rollout", "own.jsonl", "--json")
    assert said.json["source"]["format"] == "sqtool"
    (tmp_path / "gateway.jsonl").write_text("\n".join(line for line in found if '"metadata"' in line) + "\n")
    assert "one arm only" in sqtool_("rollout", "gateway.jsonl").err


def test_the_guides_rules_are_rules(sqtool_: Sqtool, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (tmp_path / "rules.yaml").write_text(block[1])
    name = log(tmp_path, {"baseline": 0.05, "b": 0.05}, 50)
    assert sqtool_("rollout", name, "--rules", "rules.yaml").code == 0
