"""Tables, plots, sections and the page of the arms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from sqtool.advise import Measured
from sqtool.errors import UsageError
from sqtool.files import read_json, write_json
from sqtool.report import collect, write_report
from sqtool.report.html import page
from sqtool.report.speculation import status
from sqtool.report.speculation_loads import load_tables, load_words
from sqtool.report.speculation_plots import COST, LATENCY, POSITIONS, alt_texts, draw_speculation
from tests.unit.advise.reports import approval, at_load, gate, report

Make = Callable[..., Path]
LOADS: dict[str, Any] = {
    "c1": {"quantized": (1.1, 1.05, 1.15), "speculative": (2.0, 1.8, 2.2), "both": (2.4, 2.3, 2.5)},
    "c64": {"quantized": (1.3, 1.2, 1.4), "speculative": (0.8, 0.7, 0.9), "both": (0.9, 0.85, 0.95)},
}


def headings(text: str) -> list[str]:
    parsed = MarkdownIt("commonmark").enable("table").parse(text)
    return [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]


def test_one_section_a_load_and_the_advice_last(make_run: Make) -> None:
    folder = make_run()
    write_json(folder / "speculate/speculate.json", report(LOADS))
    facts = collect(folder)
    assert facts.unreadable == []
    assert facts.arms is not None
    assert facts.arms.headers[0] == "load"
    assert len(facts.speculation) == 2, "the verdict and the advice; several loads are for the tables"
    assert facts.speculation[1].startswith("advice: it depends on the load: ")
    found = headings(write_report(folder).read_text())
    assert found[-3:] == ["What to deploy", "Each arm", "Rules"]
    text = (folder / "report.md").read_text()
    assert "| both | 4 / 40 | 0 after 1.0 s | 0.0 % / 0.0 % | 400 / 410 | 4 / 4 |" in text
    for title in (
        "Verdict on speculation",
        "Speculative decoding at c1: 1 request at once",
        "Speculative decoding at c64: 64 requests at once",
        "Whether the gains multiply",
        "Memory and start",
        "Streams that were cut off",
        "Not measured, and why",
    ):
        assert title in found


def test_servers_that_are_not_sqtools_are_named(make_run: Make) -> None:
    folder = make_run()
    value = report(LOADS)
    assert "not sqtool's" not in write_report(folder).read_text()
    value["arms"]["both"] |= {
        "server": {"started_by_sqtool": False, "url": "http://gpu-2:8000", "model": "w4"},
        "memory": {"missing": {"weights_bytes": "not to be seen"}},
        "start_seconds": None,
    }
    write_json(folder / "speculate/speculate.json", value)
    text = write_report(folder).read_text()
    assert text.count("Asked of servers that ran already") == 2
    facts = collect(folder)
    assert facts.arms is not None
    assert "gpu-2" in facts.arms.notes[-1]


def test_tables_of_a_load_have_intervals() -> None:
    tables = dict(load_tables(Measured(report(LOADS)), "c1"))
    cells = dict(zip(tables["Latency"].headers, tables["Latency"].rows[3], strict=True))
    assert cells["arm"] == "both"
    assert cells["end to end p50 ms [interval]"] == "167 [163, 170]"
    assert cells["inside the SLO"] == "100.0 %"
    cells = dict(zip(tables["Acceptance"].headers, tables["Acceptance"].rows[1], strict=True))
    assert cells["acceptance [interval]"] == "68.8 % [67.4, 70.1]"
    assert (cells["token 1"], cells["token 4"]) == ("90.0 %", "50.0 %")
    assert cells["target passes saved"] == "2,800 (70 %)"
    assert cells["ratio [interval]"] == "1.20 [1.16, 1.24]"
    change = tables["Acceptance, quantized target minus full target"]
    assert change.rows[0][:3] == ("all", "-3.0 [-5.0, -1.0]", "-0.12 [-0.20, -0.04]")
    ratio = dict(
        zip(tables["Whether the gains multiply"].headers, tables["Whether the gains multiply"].rows[2], strict=True)
    )
    assert ratio["gain over the baseline"] == "end to end p50"
    assert ratio["A/A"] == "1.00 [0.98, 1.02]"


def test_what_is_missing_leaves_no_column_and_says_why(make_run: Make) -> None:
    value = report()
    for arm in value["arms"].values():
        arm["loads"]["c16"] |= {"goodput": None, "cost": {"missing": "no item has a scorer"}}
    value["interaction"]["c16"]["e2e_p50"]["both"] = {"gain": 1.7, "ci": None}
    tables = dict(load_tables(Measured(value), "c16"))
    assert "inside the SLO" not in tables["Latency"].headers
    assert not any("cost" in header for header in tables["Gain, cost and answers"].headers)
    folder = make_run()
    write_json(folder / "speculate/speculate.json", value)
    assert COST not in alt_texts(value)
    assert "| device_peak_bytes | baseline | no GPU here |" in write_report(folder).read_text()


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("c1", "1 request at once"),
        ("r2.5", "2.5 requests/s, at random times"),
        ("trace", "at the recorded times"),
        ("x", "x"),
    ],
)
def test_loads_in_words(load: str, words: str) -> None:
    assert load_words(load) == words


def test_the_verdict_on_speculation_in_one_line() -> None:
    assert status(None) == "speculation: not judged"
    assert status(approval()) == "speculation: approved (num_speculative_tokens 4)"
    refused = {**approval(approved=False), "reasons": ["both: worse", "speculative: worse"]}
    assert status(refused) == "speculation: not approved: both: worse (and 1 more)"


def test_speculation_that_is_not_approved_is_never_in_a_command(make_run: Make) -> None:
    folder = make_run()
    write_json(folder / "approve/speculation_verdict.json", approval(approved=False))
    text = write_report(folder).read_text()
    assert "speculation: not approved: both: REGRESSED" in text
    assert not any("--speculative-config" in line for line in text.splitlines() if line.startswith("vllm serve"))
    result = read_json(folder / "release/result.json")
    result["summary"]["serve_speculative"] = "vllm serve x --speculative-config y"
    write_json(folder / "release/result.json", result)
    assert "With speculative decoding, which is approved:" in write_report(folder).read_text()


def test_rules_of_the_recipe_are_shown(make_run: Make) -> None:
    folder = make_run()
    rule = {"rule": "max_p99_ratio", "load": "c16", "arm": "both", "value": 1.3, "limit": 1.1, "ci": [1.2, 1.4]}
    rules = [{**rule, "ok": False, "status": "exceeded"}]
    write_json(folder / "approve/speculation_verdict.json", {**approval(approved=False), "rules": rules})
    assert "| max_p99_ratio | c16 | both | 1.3 | 1.2 to 1.4 | 1.1 | exceeded |" in write_report(folder).read_text()


def test_a_report_of_another_version_hides_nothing_else(make_run: Make) -> None:
    folder = make_run()
    write_json(folder / "speculate/speculate.json", {"schema": "sqtool.speculate/1"})
    facts = collect(folder)
    assert facts.metrics is not None
    assert any("speculate" in line and "sqtool.speculate/1" in line for line in facts.unreadable)
    assert facts.advice is None


def test_plots_are_the_same_bytes_each_time_and_inside_the_page(make_run: Make, tmp_path: Path) -> None:
    folder = make_run()
    value = report(LOADS, extra={"own$arm": {**report(LOADS)["arms"]["both"]}})
    write_json(folder / "speculate/speculate.json", value)
    write_report(folder)
    first = {name: (folder / name).read_bytes() for name in (POSITIONS, LATENCY, COST)}
    draw_speculation(folder, value)
    assert {name: (folder / name).read_bytes() for name in first} == first
    html = (folder / "report.html").read_text()
    assert html.count("<svg") == 3
    assert "own$arm" in html
    assert "<img" not in html


def test_one_load_has_no_plot_over_loads() -> None:
    assert set(alt_texts(report())) == {POSITIONS, COST}
    bare = copy.deepcopy(report())
    for arm in bare["arms"].values():
        arm["loads"] = {}
    assert alt_texts(bare) == {}


def test_intervals_that_do_not_hold_their_middle_can_be_drawn(tmp_path: Path) -> None:
    value = report()
    value["arms"]["both"]["loads"]["c16"]["cost"] |= {"per_accepted_answer": 0.1, "ci": [0.11, 0.2]}
    value["arms"]["baseline"]["loads"]["c16"]["cost"] |= {"ci": None}
    draw_speculation(tmp_path, value)
    assert (tmp_path / COST).is_file()


def test_the_page_shows_markup_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<?xml?><svg>drawn</svg>")
    text = "# T & <i>\n\n<script>x</script>\n\n![what it shows](a.svg)\n\n![gone](b.svg)\n\n| a |\n| - |\n| 1 |\n"
    html = page(text, tmp_path)
    assert "<script>" not in html
    assert "<title>T &amp; &lt;i&gt;</title>" in html
    assert '<div class="plot" role="img" aria-label="what it shows"><svg>drawn</svg></div>' in html
    assert "<p>gone</p>" in html
    assert '<div class="table"><table>' in html


def test_another_schema_is_refused() -> None:
    from sqtool.report.facts import Facts
    from sqtool.report.speculation import add_speculation

    with pytest.raises(UsageError, match="has schema 'old'") as caught:
        add_speculation(Facts("x", "DONE"), {"schema": "old"}, None)
    assert "--force speculate" in caught.value.remedy


def test_advice_needs_something_to_advise_on(make_run: Make) -> None:
    from sqtool.report.advice import advice_of
    from sqtool.runfolder import RunFolder

    folder = make_run("failed", drop=("gate", "speculate", "approve", "release"), error={"message": "x", "remedy": ""})
    with pytest.raises(UsageError, match="neither a verdict nor measured arms") as caught:
        advice_of(RunFolder(folder))
    assert caught.value.remedy == "`sqtool speculate recipes/demo.yaml` measures them."
    assert gate()["outcome"] == "PASS"


@pytest.mark.parametrize("failed", [0, 3])
def test_failures_are_counted(failed: int) -> None:
    value = report()
    value["arms"]["both"]["loads"]["c16"] = at_load(1.5, speculates=True, first_share=0.2, rates=[0.9], failed=failed)
    table = dict(load_tables(Measured(value), "c16"))["Latency"]
    assert table.rows[3][-1] == str(failed)
