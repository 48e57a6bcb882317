from __future__ import annotations

import json
import shlex
from pathlib import Path

from sqtool.release.manifest import read_manifest
from sqtool.release.speculation_card import facts_of, speculation_section, speculative_words
from tests.unit.advise.reports import approval
from tests.unit.release.conftest import Case

SERVE = ["vllm", "serve", "."]


def test_approved_names_the_measured_drafter_where_the_recipe_has_it(tmp_path: Path) -> None:
    facts = facts_of(approval(), root=tmp_path, draft=tmp_path / "artifacts/draft")
    assert facts["config"] == {"method": "draft_model", "model": "artifacts/draft", "num_speculative_tokens": 4}
    flag, value = speculative_words(facts)
    assert flag == "--speculative-config"
    assert json.loads(value) == facts["config"]
    text = speculation_section(facts, SERVE)
    (line,) = [line for line in text.splitlines() if line.startswith("vllm serve")]
    assert json.loads(shlex.split(line)[-1]) == facts["config"], "a shell reads it back"
    assert "not part of this release" in text


def test_where_a_drafter_lies_elsewhere_is_not_told(tmp_path: Path) -> None:
    facts = facts_of(approval(), root=tmp_path / "project", draft=tmp_path / "models/draft")
    assert facts["config"]["model"] == "draft"
    given = {**approval(), "speculative_config": {"method": "draft_model", "model": str(tmp_path / "models/draft")}}
    for draft in (None, tmp_path / "models/draft", tmp_path / "other"):
        assert facts_of(given, root=tmp_path / "project", draft=draft)["config"]["model"] == "draft"
        assert facts_of(given, root=tmp_path, draft=draft)["config"]["model"] == "models/draft"
    assert facts_of(approval(), root=tmp_path, draft=None)["config"]["model"] == "draft"


def test_ngram_has_no_drafter(tmp_path: Path) -> None:
    config = {"method": "ngram", "num_speculative_tokens": 3}
    facts = facts_of({**approval(), "speculative_config": config}, root=tmp_path, draft=tmp_path / "draft")
    assert facts["config"] == config
    assert "not part of this release" not in speculation_section(facts, SERVE)


def test_not_approved_is_named_and_has_no_flag(tmp_path: Path) -> None:
    facts = facts_of({**approval(approved=False), "reasons": ["both: <b>worse</b>"]}, root=tmp_path, draft=None)
    assert speculative_words(facts) == []
    text = speculation_section(facts, SERVE)
    assert "**Not approved**" in text
    assert "--speculative-config" not in text
    assert "<b>" not in text.replace("\\<b", "")
    assert speculation_section(None, SERVE) == ""
    assert speculative_words(None) == []


def test_a_release_says_it_in_card_and_manifest(case: Case) -> None:
    facts = facts_of(approval(), root=case.root, draft=case.root / "draft")
    given = {"model": "base", "seed": 0, "speculation": facts}
    published = case.root / case.publish(provenance=given)["path"]
    assert "--speculative-config" in (published / "README.md").read_text()
    assert read_manifest(published)["provenance"]["speculation"] == facts


def test_another_verdict_on_speculation_is_another_release(case: Case) -> None:
    places = []
    for approved in (True, False):
        facts = facts_of(approval(approved=approved), root=case.root, draft=None)
        result = case.publish(spec={"version": None}, provenance={"model": "base", "speculation": facts})
        assert not result["reused"], "its card would say the opposite"
        places.append(result["path"])
    assert len(set(places)) == 2
