"""Guides under docs/: every command in them is one that exists, every gate section is one that a recipe may have."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from calibrate.spec import CalibrateSpec, MinScores
from evals.config_diff import COMPARED_TOKENIZER_CONFIG, IGNORED_GENERATION, IGNORED_TOKENIZER
from evals.spec import EngineSpec, EvaluateSpec
from sqtool.cli import COMMANDS, cli
from sqtool.gate.spec import GateSpec
from sqtool.spec import Spec

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("gate.md", "engines.md", "calibration.md")


def blocks(guide: str) -> list[str]:
    """The indented blocks, without their indentation."""
    text = (DOCS / guide).read_text(encoding="utf-8")
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip("\n") for block in found]


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_exist(guide: str) -> None:
    lines = [line for block in blocks(guide) for line in block.splitlines() if line.startswith("sqtool ")]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        command = cli.get_command(cli.make_context("sqtool", ["doctor"]), name)
        assert command is not None, line
        command.make_context(name, arguments)  # a wrong option or a missing argument raises


@pytest.mark.parametrize("guide", GUIDES)
def test_sections_can_be_read(guide: str) -> None:
    specs: dict[str, type[Spec]] = {
        "gate": GateSpec,
        "engine": EngineSpec,
        "evaluate": EvaluateSpec,
        "calibrate": CalibrateSpec,
    }
    sections = [YAML(typ="safe").load(block) for block in blocks(guide) if block.startswith(tuple(specs))]
    assert sections
    for section in sections:
        for name, value in section.items():
            specs[name].model_validate(value)


def test_what_is_not_compared_is_listed() -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    ignored = [name for name in IGNORED_GENERATION if not name.startswith("output_")]
    for name in (*ignored, *IGNORED_TOKENIZER, *COMPARED_TOKENIZER_CONFIG):
        assert f"`{name}`" in text


def test_the_guide_lists_every_dimension_with_its_minimum() -> None:
    page = (DOCS / "calibration.md").read_text(encoding="utf-8")
    listed = {}
    for names, least in re.findall(r"^\| (`.*`) \|.*\| ([\d.]+) \|$", page, re.MULTILINE):
        listed |= {name.strip("` "): float(least) for name in names.split(",")}
    assert listed == MinScores().model_dump()


def test_commands_named_in_a_sentence_exist() -> None:
    for guide in GUIDES:
        for name in re.findall(r"`sqtool (\w+)", (DOCS / guide).read_text(encoding="utf-8")):
            assert name in COMMANDS
            import_module(f"sqtool.cli.{'evaluate' if name == 'eval' else name}")
