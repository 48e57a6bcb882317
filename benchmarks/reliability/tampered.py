"""Twelve ways to tamper with a release, and what `sqtool verify` says to each.

    .venv/bin/python benchmarks/reliability/tampered.py

A small checkpoint in two shards, a verdict by the real gate on made-up records, published and signed by the real
release code into a temporary folder; then twelve copies, each tampered with as somebody would who can write every file
and knows how a release is made, but has not the key. Prints one row for each: what was done, which check noticed it
first, its message, and whether it is noticed without the publisher's public key as well. Exits with 1 when a tampering
goes unnoticed with the key, or the untouched release does not verify.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sqtool.cli import call  # noqa: E402
from sqtool.files import canonical_json, digest_folder  # noqa: E402
from sqtool.gate.judge import judge  # noqa: E402
from sqtool.gate.spec import GateSpec  # noqa: E402
from sqtool.release.attestation import statement  # noqa: E402
from sqtool.release.manifest import ATTESTATION, MANIFEST, SIGNATURE, checkpoint_digest  # noqa: E402
from sqtool.release.publish import publish  # noqa: E402
from sqtool.release.signing import Signer, make_keys, sign_folder  # noqa: E402
from sqtool.release.spec import ReleaseSpec  # noqa: E402

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
RECIPE = """\
name: tiny
model: artifacts/reference/target
quantize: {methods: [awq]}
gate: {metrics: {recall.exact_match: 0.02}}
"""
ITEMS = 400


@dataclass(frozen=True)
class World:
    """A good release, an older good one of other weights, and both keys."""

    good: Path
    older: Path
    key: Path
    other_key: Path


def make_world(root: Path) -> World:
    """Publish both releases below `root`."""
    key, other_key = (make_keys(root / name)[0] for name in ("release.key", "other.key"))
    older = _publish(root, "v1", seed=1, wrong=0, key=key)
    return World(_publish(root, "v2", seed=2, wrong=1, key=key), older, key, other_key)


def _publish(root: Path, version: str, *, seed: int, wrong: int, key: Path) -> Path:
    checkpoint = _checkpoint(root / f"checkpoint-{version}", seed)
    baseline = _records(root / f"baseline-{version}", 0)
    candidate = _records(root / f"candidate-{version}", wrong)
    rules = GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02}})
    verdict = root / f"verdict-{version}.json"
    bindings = {"candidate_digest": digest_folder(checkpoint), "engine": {"engine": "vllm", "version": "0.32.0+cpu"}}
    verdict.write_text(judge(rules, baseline, candidate, bindings=bindings).to_json(), encoding="utf-8")
    spec = ReleaseSpec.model_validate({"name": "tiny", "version": version, "sign": {"key": str(key)}})
    done = publish(
        spec,
        checkpoint=checkpoint,
        verdict=verdict,
        root=root,
        recipe_text=RECIPE,
        provenance={"model": "artifacts/reference/target", "seed": 0},
        records=(baseline, candidate, None),
        rules=rules.model_dump(mode="json"),
    )
    return root / str(done["path"])


def _checkpoint(folder: Path, seed: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    weights = [{f"model.layers.{n}.weight": random.standard_normal((64, 64), dtype=np.float32)} for n in range(2)]
    for name, tensors in zip(SHARDS, weights, strict=True):
        save_file(tensors, folder / name)
    names = {tensor: name for name, tensors in zip(SHARDS, weights, strict=True) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _records(folder: Path, wrong: int) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"task": "recall", "id": f"r{n:05d}", "kind": "recall", "scores": {"exact_match": int(n >= wrong)}})
        for n in range(ITEMS)
    ]
    (folder / "recall.jsonl").write_text("\n".join(lines) + "\n")
    return folder


# ------------------------------------------------------------------------------------------------ what is done


def rehash(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Let manifest and attestation fit the folder again, as whoever can write it would; `change` does more to the
    manifest. Only the signatures stay what they were: they need the key."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    for part in ("recipe", "verdict"):
        manifest[part]["sha256"] = manifest["digests"][part] = manifest["files"][manifest[part]["file"]]["sha256"]
    mapping = manifest["checkpoint"]["files"]
    digest = checkpoint_digest({name: manifest["files"][stored]["sha256"] for name, stored in mapping.items()})
    manifest["checkpoint"]["digest"] = manifest["digests"]["checkpoint"] = digest
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    if (folder / ATTESTATION).is_file():
        verdict = json.loads((folder / "verdict.json").read_text())
        payload = canonical_json(statement(folder, manifest, verdict)).encode()
        edit(folder / ATTESTATION, lambda envelope: envelope.update(payload=base64.b64encode(payload).decode()))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def swap_shards(folder: Path, _world: World) -> None:
    first, second = (folder / name for name in SHARDS)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def other_weights(folder: Path, world: World) -> None:
    shutil.copyfile(world.older / SHARDS[0], folder / SHARDS[0])
    rehash(folder)


def edit_verdict(folder: Path, _world: World) -> None:
    def change(verdict: dict[str, Any]) -> None:
        verdict["metrics"][0].update(candidate=1.0, difference=0.0, worsened=0)

    edit(folder / "verdict.json", change)
    rehash(folder)


def replay_verdict(folder: Path, world: World) -> None:
    shutil.copyfile(world.older / "verdict.json", folder / "verdict.json")
    shutil.copytree(world.older / "evidence", folder / "evidence", dirs_exist_ok=True)
    rehash(folder)


def widen_recipe(folder: Path, _world: World) -> None:
    path = folder / "RECIPE.yaml"
    path.write_text(path.read_text().replace("0.02", "0.20"))
    rehash(folder)


def edit_record(folder: Path, _world: World) -> None:
    path = folder / "evidence/evaluate/records/recall.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0', '"exact_match": 1', 1))
    rehash(folder)


def forge_all(folder: Path, _world: World) -> None:
    """Better records, the real gate's verdict on them, fitting hashes: consistent, and a lie."""
    path = folder / "evidence/evaluate/records/recall.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0', '"exact_match": 1'))
    old = json.loads((folder / "verdict.json").read_text())
    sides = (folder / "evidence" / side / "records" for side in ("baseline", "evaluate"))
    forged = judge(GateSpec.model_validate(old["spec"]), *sides, bindings=old["bindings"])
    (folder / "verdict.json").write_text(forged.to_json())
    rehash(folder)


def set_clock_back(folder: Path, _world: World) -> None:
    rehash(folder, lambda manifest: manifest.update(created="2020-01-01T00:00:00+00:00"))


def truncate_card(folder: Path, _world: World) -> None:
    path = folder / "README.md"
    path.write_text(path.read_text().partition("## Limits")[0])
    rehash(folder)


def link_outside(folder: Path, _world: World) -> None:
    outside = folder.parent / f"{folder.name}-outside"
    (folder / SHARDS[1]).rename(outside)
    (folder / SHARDS[1]).symlink_to(outside)


def strip_signature(folder: Path, world: World) -> None:
    other_weights(folder, world)
    for name in (SIGNATURE, ATTESTATION):
        (folder / name).unlink()
    rehash(folder, lambda manifest: manifest.update(signing=None))


def sign_again(folder: Path, world: World) -> None:
    """Somebody else's signature over a truncated card."""
    truncate_card(folder, world)
    (folder / SIGNATURE).unlink()
    sign_folder(folder, Signer(world.other_key))


TAMPERINGS: dict[str, Callable[[Path, World], None]] = {
    "two shards swapped": swap_shards,
    "a shard of another checkpoint, hashes made to fit": other_weights,
    "verdict edited, hashes made to fit": edit_verdict,
    "verdict and records of an older release replayed": replay_verdict,
    "margin in the recipe widened after the evaluation": widen_recipe,
    "one line of the records edited, hashes made to fit": edit_record,
    "records, verdict and hashes forged consistently": forge_all,
    "time of the release set back": set_clock_back,
    "model card cut before its limits, hashes made to fit": truncate_card,
    "a shard replaced by a link to the same bytes": link_outside,
    "a shard exchanged, signature and attestation removed": strip_signature,
    "signed again with another key": sign_again,
}


# ------------------------------------------------------------------------------------------------ the table


def verify(folder: Path, *options: str) -> dict[str, Any]:
    """What `sqtool verify FOLDER --json` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = call(["verify", str(folder), "--json", "--quiet", *options])
    value: dict[str, Any] = json.loads(out.getvalue())
    assert value["exit_code"] == code
    return value


def tampered(world: World, name: str, place: Path) -> Path:
    """A tampered copy of the good release at `place`."""
    shutil.copytree(world.good, place)
    TAMPERINGS[name](place, world)
    return place


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = make_world(root)
        trusted = ("--require-signature", "--key", f"{world.key}.pub")
        good = verify(world.good, *trusted)
        print("| tampering | exit | caught by | first message | without the key |")
        print("| --- | ---: | --- | --- | --- |")
        print(f"| none | {good['exit_code']} | | {good['files']} files, signature {good['signature']} | |")
        missed = 0
        for number, name in enumerate(TAMPERINGS):
            copy = tampered(world, name, root / f"copy-{number:02d}")
            found, without = verify(copy, *trusted), verify(copy)
            checks = ", ".join(dict.fromkeys(f["check"] for f in found["findings"]))
            first = found["findings"][0]["message"] if found["findings"] else "NOT CAUGHT"
            alone = "caught" if not without["ok"] else "not caught"
            missed += found["ok"]
            print(f"| {name} | {found['exit_code']} | {checks} | {_short(first)} | {alone} |")
        print(f"\n{len(TAMPERINGS) - missed} of {len(TAMPERINGS)} caught")
    return 1 if missed or not good["ok"] else 0


def _short(message: str) -> str:
    """A message for a cell: digests by their first digits."""
    words = (word if len(word.strip("(),.")) != 64 else f"{word.strip('(),.')[:8]}..." for word in message.split())
    return " ".join(words).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
