"""A small checkpoint, real verdicts on it by the real gate, and a publication of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqtool.cli.verify import rules_of
from sqtool.files import digest_folder
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from sqtool.release.check import Checked, check_release
from sqtool.release.publish import publish
from sqtool.release.signing import KEY_VARIABLE, PASSWORD_VARIABLE, Trust, make_keys
from sqtool.release.spec import ReleaseSpec

RECIPE = """\
name: awq4
model: artifacts/reference/target
quantize: {methods: [awq]}
gate: {metrics: {recall.exact_match: 0.02}}
"""
CONFIG = {
    "model_type": "llama",
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": False},
            }
        },
    },
}


def write_checkpoint(folder: Path) -> Path:
    """A folder that looks like what llm-compressor saves."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "recipe.yaml").write_text("from: llm-compressor\n")
    (folder / "extra").mkdir()
    (folder / "extra" / "part.bin").write_bytes(b"part")
    return folder


def write_records(folder: Path, scores: list[int]) -> Path:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"task": "recall", "id": f"recall-{i:05d}", "kind": "recall", "scores": {"exact_match": s}})
        for i, s in enumerate(scores)
    ]
    (folder / "recall.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@dataclass
class Case:
    """Paths of one publication; change what you like, then call `publish`."""

    root: Path
    checkpoint: Path
    verdict: Path
    records: tuple[Path, Path, Path | None]
    recipe_text: str = RECIPE

    def publish(self, **changes: Any) -> dict[str, Any]:
        spec = ReleaseSpec(**{"name": "awq4", "version": "v1", **changes.pop("spec", {})})
        arguments: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "verdict": self.verdict,
            "root": self.root,
            "recipe_text": self.recipe_text,
            "extras": {},
            "provenance": {
                "model": "artifacts/reference/target",
                "seed": 0,
                "digests": {"model": "a" * 64, "data": {"data/calibration.jsonl": "b" * 64}},
            },
        }
        return publish(spec, **{**arguments, **changes})

    def published(self, *, key: Path | None = None, **changes: Any) -> Path:
        """The folder of a release that holds its records, signed where a key is given."""
        spec = {**changes.pop("spec", {}), **({"sign": {"key": str(key)}} if key else {})}
        return self.root / self.publish(records=self.records, spec=spec, **changes)["path"]

    @property
    def releases(self) -> Path:
        return self.root / "artifacts" / "releases"

    def visible(self) -> list[str]:
        """Everything below the folder of releases that is not hidden."""
        return sorted(p.name for p in self.releases.glob("*") if not p.name.startswith("."))

    def latest(self) -> str:
        """The text of the pointer."""
        return str((self.releases / "awq4" / "latest").readlink())

    def hidden(self) -> list[str]:
        return [str(p) for p in self.releases.rglob(".tmp*")]

    def edit_verdict(self, change: Callable[[dict[str, Any]], None]) -> None:
        value = json.loads(self.verdict.read_text())
        change(value)
        self.verdict.write_text(json.dumps(value))


def make_case(root: Path, *, wrong: int = 0, items: int = 400, gate: dict[str, Any] | None = None) -> Case:
    """A candidate that gets `wrong` of `items` wrong where the baseline is always right."""
    checkpoint = write_checkpoint(root / "runs" / "awq4" / "checkpoint")
    baseline = write_records(root / "baseline", [1] * items)
    candidate = write_records(root / "candidate", [0] * wrong + [1] * (items - wrong))
    spec = GateSpec(metrics={"recall.exact_match": 0.02}, **(gate or {}))  # type: ignore[dict-item]
    bindings = {"candidate_digest": digest_folder(checkpoint), "engine": "vllm 0.32.0+cpu"}
    verdict = root / "verdict.json"
    verdict.write_text(judge(spec, baseline, candidate, bindings=bindings).to_json())
    return Case(root, checkpoint, verdict, (baseline, candidate, None))


def check(folder: Path, key: Path | None = None, **options: Any) -> Checked:
    """`sqtool verify`, with the public half of `key`."""
    trust = Trust(key.with_name(key.name + ".pub")) if key else None
    return check_release(folder, trust=trust, rules_of=rules_of, **options)


def messages(found: Checked) -> list[str]:
    return [f"{finding.check}: {finding.message}" for finding in found.findings]


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; its public half lies beside it."""
    return make_keys(tmp_path_factory.mktemp("keys") / "release.key")[0]


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's."""
    return make_keys(tmp_path_factory.mktemp("keys") / "other.key")[0]


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, PASSWORD_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """One that passes."""
    return make_case(tmp_path)
