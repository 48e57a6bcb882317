"""What beside its weights changes a checkpoint's answers, compared field by field between baseline and candidate.

A quantizer has no reason to touch any of it, and a scale's worth of error is nothing against a lost stop token. What is
not compared is listed here with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import canonical_json, sha256_file, sha256_text

GENERATION, TOKENIZER, TOKENIZER_CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template"
MISSING = "missing"

IGNORED_GENERATION = {
    "transformers_version": "who wrote the file",
    "_from_model_config": "how transformers made it",
    "bos_token_id": "only begins a text without a prompt",
    "pad_token_id": "fills batches, and is never seen",
    "use_cache": "speed",
    "cache_implementation": "speed",
    "return_dict_in_generate": "the form of a Python result",
    "output_attentions": "the form of a Python result",
    "output_hidden_states": "the form of a Python result",
    "output_scores": "the form of a Python result",
    "output_logits": "the form of a Python result",
}
"""Fields of generation_config.json that change no answer, which quantizers and transformers add or drop."""
COMPARED_TOKENIZER_CONFIG = (
    "bos_token",
    "eos_token",
    "unk_token",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "do_lower_case",
    "split_special_tokens",
    "model_max_length",
)
"""The fields of tokenizer_config.json that say what text becomes which tokens, where an answer ends and how long a
prompt may be. The others say how transformers loads it, and differ from one of its versions to the next."""
IGNORED_TOKENIZER = ("version", "truncation", "padding")
"""Parts of tokenizer.json that transformers and vLLM set anew at each call; calibration leaves its own there."""
NO_LENGTH = 1e20
"""transformers writes `int(1e30)` for a model_max_length that nobody knows."""
MOST_CHARACTERS = 80
OTHER_VOCABULARIES = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "tekken.json")


@dataclass(frozen=True)
class Difference:
    """One field that is not the same; `baseline` and `candidate` are short texts for people."""

    file: str
    field: str
    baseline: str
    candidate: str

    def to_json(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)


def differences(baseline: Path, candidate: Path) -> list[Difference]:
    """The fields in which two checkpoint folders differ; empty when a server would treat their answers the same.

    `DataError` for a file that is no JSON.
    """
    if baseline.resolve() == candidate.resolve():
        return []
    pairs = {
        GENERATION: (_generation(baseline), _generation(candidate)),
        TOKENIZER: _tokenizers(baseline, candidate),
        TOKENIZER_CONFIG: (_tokenizer_config(baseline), _tokenizer_config(candidate)),
        TEMPLATE: (chat_templates(baseline), chat_templates(candidate)),
    }
    return [
        Difference(file, field, *_shown(left.get(field), right.get(field)))
        for file, (left, right) in pairs.items()
        for field in sorted({*left, *right})
        if left.get(field) != right.get(field)
    ]


def _generation(folder: Path) -> dict[str, Any]:
    """The compared fields; without a file, what transformers and vLLM derive from config.json. null is no value."""
    if (folder / GENERATION).is_file():
        value = _read(folder / GENERATION)
    else:
        value = {"eos_token_id": _read(folder / "config.json").get("eos_token_id")}
    found = {k: v for k, v in value.items() if v is not None and k not in IGNORED_GENERATION}
    if "eos_token_id" in found:
        ids = found["eos_token_id"]
        found["eos_token_id"] = sorted(set(ids)) if isinstance(ids, list) else [ids]
    return found


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    value = _read(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    found = {name: value[name] for name in COMPARED_TOKENIZER_CONFIG if value.get(name) is not None}
    for name, token in found.items():
        if isinstance(token, Mapping):  # an added token with its flags, which tokenizer.json has as well
            found[name] = token.get("content")
    if float(found.get("model_max_length", 0)) > NO_LENGTH:
        del found["model_max_length"]
    return found


def _tokenizers(baseline: Path, candidate: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts of tokenizer.json, in the form that this version of `tokenizers` writes; where not both sides have that
    file, the digests of the vocabularies that both have."""
    if all((folder / TOKENIZER).is_file() for folder in (baseline, candidate)):
        return _tokenizer(baseline), _tokenizer(candidate)
    shared = [name for name in OTHER_VOCABULARIES if all((f / name).is_file() for f in (baseline, candidate))]
    if shared:
        left, right = ({name: sha256_file(folder / name) for name in shared} for folder in (baseline, candidate))
        return left, right
    left, right = ({"file": "there"} if _has_vocabulary(folder) else {} for folder in (baseline, candidate))
    return left, right


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TOKENIZER, *OTHER_VOCABULARIES))


def _tokenizer(folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    try:
        value = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DataError(path, f"is no tokenizer: {error}") from None
    model = value.pop("model")
    parts = {name: part for name, part in value.items() if name not in IGNORED_TOKENIZER}
    return {**parts, **{f"model.{name}": part for name, part in model.items()}}


def chat_templates(folder: Path) -> dict[str, str]:
    """A checkpoint's chat templates by name. A file counts more than the entry in tokenizer_config.json, as in
    transformers; Jinja drops one line break at the end."""
    found: dict[str, str] = {}
    entry = _read(folder / TOKENIZER_CONFIG).get(TEMPLATE) if (folder / TOKENIZER_CONFIG).is_file() else None
    if isinstance(entry, str):
        found["default"] = entry
    elif isinstance(entry, list):
        found |= {str(one["name"]): str(one["template"]) for one in entry}
    files = {"default": folder / f"{TEMPLATE}.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found |= {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    return {name: text.removesuffix("\n") for name, text in found.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(path, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(path, "expected a JSON object")
    return value


def _shown(left: Any, right: Any) -> tuple[str, str]:
    """Two values that differ, short and so that one sees where."""
    if isinstance(left, str) and isinstance(right, str) and max(len(left), len(right)) > MOST_CHARACTERS:
        lines = zip((*left.splitlines(), ""), (*right.splitlines(), ""), strict=False)
        for number, (a, b) in enumerate(lines, 1):
            if a != b:
                return f"line {number}: {_cut(a)}", f"line {number}: {_cut(b)}"
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        key = next(key for key in {**left, **right} if left.get(key) != right.get(key))
        a, b = (f"{len(one)} entries; {key}: {_cut(_text(one.get(key)))}" for one in (left, right))
        return a, b
    return _cut(_text(left)), _cut(_text(right))


def _text(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else canonical_json(value)


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} ... ({len(text)} characters, {sha256_text(text)[:8]})"
