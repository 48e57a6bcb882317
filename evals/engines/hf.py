"""transformers in this process: no server, any model that transformers can load, batches one after the other.

Generation is transformers' own `generate` (KV cache, stop tokens). Nothing of the checkpoint's generation_config bends
an answer but its stop tokens, unless the answers are asked for `as_served`; then what transformers itself would take
from there is taken.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from evals.engine_env import Device, device_name, resolve_dtype
from evals.engines.base import Done, Limits, Question
from evals.engines.chat import cut, hermes_calls, load_tokenizer, prompt_ids, text_ids
from evals.engines.http import answer_of
from evals.items import Item
from evals.quiet import quiet
from evals.scorers import Answer, Loglikelihood
from evals.spec import EngineSpec, GenerationSpec
from sqtool.errors import DataError, EngineError, InfrastructureError, UsageError
from sqtool.progress import Progress

if TYPE_CHECKING:
    import torch

    from evals.engines.draw import Sampling
    from evals.heads import Head


T = TypeVar("T")


@dataclass(frozen=True)
class _Row:
    """One continuation of one question: token ids, the prompt's first."""

    tokens: tuple[int, ...]
    prompt: int


class HfEngine:
    """See `evals.engines.base.Engine`."""

    def __init__(self, spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress) -> None:
        self.spec, self.folder, self.progress = spec, model, progress
        self.retried: Counter[str] = Counter()
        self.endpoint = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._head: Head | None = None
        self._stored: Any = None
        """The checkpoint's generation_config."""

    def __enter__(self) -> HfEngine:
        from transformers import AutoModelForCausalLM, GenerationConfig

        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        device = _device(self.spec)
        self._tokenizer = load_tokenizer(self.folder)
        with quiet(), self.progress.task(f"transformers: load ({self.folder.name})"), _memory():
            try:
                model = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=resolve_dtype(self.spec, device),
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                )
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise EngineError(
                    f"transformers cannot load {self.folder}: {error}",
                    remedy="Evaluate it with another engine (`engine: {kind: vllm}`), or correct the checkpoint.",
                ) from error
            self._model = model.eval().to(device)
        self._stored = self._model.generation_config
        # `generate` fills whatever a call leaves open from the model's own: only the stop tokens may come from there.
        self._model.generation_config = GenerationConfig()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import gc

        import torch

        self._model = self._head = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def as_stored(self) -> Iterator[Any]:
        """The model with the checkpoint's own generation_config, for others that generate with it."""
        ours, self._model.generation_config = self._model.generation_config, self._stored
        try:
            with _memory():
                yield self._model
        finally:
            self._model.generation_config = ours

    def ask(
        self, questions: Sequence[Question], generation: GenerationSpec, limits: Limits, *, seed: int, done: Done
    ) -> None:
        from evals.engines.draw import Sampling

        sampling = Sampling.of_config(self._stored) if generation.as_served else Sampling.of(generation)
        for batch in _batches(questions, self.spec.batch_size):
            seeds = [generation.seed_of(question.sample, seed) for question in batch]
            items = [question.item for question in batch]
            with quiet(), _memory():
                answers = self._generate(items, sampling, generation.max_tokens, seeds)
            for question, answer in zip(batch, answers, strict=True):
                done(question, answer)

    def _generate(
        self, items: Sequence[Item], sampling: Sampling, max_tokens: int, seeds: Sequence[int]
    ) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        prompts = [prompt_ids(self._tokenizer, item) for item in items]
        most = [self._room(i, p, i.max_tokens or max_tokens) for i, p in zip(items, prompts, strict=True)]
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        device = self._model.device
        ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(pads, prompts, strict=True)], device=device)
        stops = self._stops()
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(most), eos_token_id=sorted(stops) or None, pad_token_id=0
        )
        with torch.inference_mode():
            tokens = self._model.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(sampling.processors(seeds, pads, device)),
            )
        rows = tokens[:, longest:].tolist()
        return [
            self._answer(item, len(prompt), row, stops, limit)
            for item, prompt, row, limit in zip(items, prompts, rows, most, strict=True)
        ]

    def _answer(self, item: Item, prompt: int, row: Sequence[int], stops: frozenset[int], most: int) -> Answer:
        kept, stopped = cut(row, stops, most)
        parsed = bool(item.tools) and item.tool_choice != "none" and self.spec.tool_call_parser is not None
        # The marks of a call may be special tokens.
        text = self._tokenizer.decode(kept, skip_special_tokens=not parsed, clean_up_tokenization_spaces=False)
        content, calls = hermes_calls(text) if parsed else (text, ())
        reason = "tool_calls" if calls else "stop" if stopped else "length"
        return Answer(content, calls, reason, prompt, len(kept) + stopped)

    def _room(self, item: Item, prompt: Sequence[int], wanted: int) -> int:
        """Tokens that the answer may have; `DataError` when the prompt alone fills the model's context."""
        length: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if length is None:
            return wanted
        if len(prompt) >= length:
            raise DataError(
                f"item {item.id}",
                f"it does not fit the model's context: {len(prompt)} tokens of {length}",
                remedy="Shorten the item.",
            )
        return min(wanted, length - len(prompt))

    def _stops(self) -> frozenset[int]:
        """Tokens that end an answer: the generation_config's, and the tokenizer's end of a text."""
        stored = self._stored.eos_token_id
        found = {stored} if isinstance(stored, int) else set(stored or ())
        return frozenset(found | {self._tokenizer.eos_token_id} - {None})

    def loglikelihoods(
        self,
        questions: Sequence[Question],
        continuations: Callable[[Item], Sequence[str]],
        limits: Limits,
        *,
        done: Done,
    ) -> None:
        waiting: list[tuple[Question, list[_Row]]] = []

        def flush() -> None:
            rows = [row for _, some in waiting for row in some]
            found = iter(self._likely(rows))
            for question, some in waiting:
                likely = [next(found) for _ in some]
                prompt = some[0].tokens[: some[0].prompt] if some else ()
                done(question, answer_of(question.item, continuations(question.item), prompt, likely))
            waiting.clear()

        for question in questions:
            waiting.append((question, self._rows(question.item, continuations(question.item))))
            if sum(len(some) for _, some in waiting) >= self.spec.batch_size:
                flush()
        flush()

    def _rows(self, item: Item, texts: Sequence[str]) -> list[_Row]:
        prompt = prompt_ids(self._tokenizer, item)
        rows = [_Row((*prompt, *text_ids(self._tokenizer, text)), len(prompt)) for text in texts]
        # The last token is predicted and never read.
        self._room(item, max((row.tokens[:-1] for row in rows), key=len, default=()), 1)
        return rows

    def _likely(self, rows: Sequence[_Row]) -> list[Loglikelihood]:
        """Log-likelihoods of the rows' continuations; long ones together, so that little is padding."""
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at].tokens))
        found: dict[int, Loglikelihood] = {}
        for places in _batches(order, self.spec.batch_size):
            with quiet(), _memory():
                found |= zip(places, self._forward([rows[at] for at in places]), strict=True)
        return [found[at] for at in range(len(rows))]

    def _forward(self, rows: Sequence[_Row]) -> list[Loglikelihood]:
        import torch

        from evals.heads import MAX_LOGITS, hidden_states

        device = self._model.device
        longest = max(len(row.tokens) for row in rows)
        ids = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in rows], device=device)
        found = []
        with torch.inference_mode():
            head = self._checked_head(ids)
            states = hidden_states(self._model, ids)
            for row, own, tokens in zip(rows, states, ids, strict=True):
                places = own[row.prompt - 1 : len(row.tokens) - 1]
                wanted = tokens[row.prompt : len(row.tokens)]
                total, greedy = 0.0, True
                size = max(1, MAX_LOGITS // head.vocab)
                for part, ending in zip(places.split(size), wanted.split(size), strict=True):
                    logits = head.logits(part)
                    chosen = torch.log_softmax(logits, -1).gather(-1, ending.unsqueeze(-1)).squeeze(-1)
                    total += float(chosen.double().sum())
                    greedy = greedy and bool((logits.argmax(-1) == ending).all())
                found.append(Loglikelihood(total, len(wanted), greedy))
        return found

    def _checked_head(self, ids: torch.Tensor) -> Head:
        """The output layer, by which logits exist for a few positions at a time only."""
        if self._head is None:
            from evals.heads import check_head, head_of

            head = head_of(self._model)
            try:
                check_head(self._model, head, ids[:1, :32])
            except InfrastructureError as error:
                raise EngineError(
                    error.message, remedy="Evaluate tasks of this kind with `engine: {kind: vllm}`."
                ) from None
            self._head = head
        return self._head

    def facts(self) -> dict[str, Any]:
        device = _device(self.spec)
        return {
            "engine": "transformers",
            "version": metadata.version("transformers"),
            "torch": metadata.version("torch"),
            "device_class": device,
            "device": device_name(device),
            "weights": "as stored",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "kv_cache_dtype": "auto",
            "attention": [str(self._model.config._attn_implementation)],
            "batch_size": self.spec.batch_size,
        }

    @staticmethod
    def check(spec: EngineSpec, root: Path) -> None:
        """`UsageError` for a GPU that is not there."""
        _device(spec)

    @staticmethod
    def fingerprint(spec: EngineSpec, root: Path) -> dict[str, Any]:
        try:
            device = device_name(_device(spec))
        except UsageError:
            device = "absent"
        versions = {name: metadata.version(name) for name in ("transformers", "torch")}
        return {**versions, "device": device}


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[at : at + size] for at in range(0, len(values), size))


def _device(spec: EngineSpec) -> Device:
    import torch

    if spec.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if spec.device == "cuda":
        raise UsageError(
            "engine.device is cuda, and torch sees no GPU here", remedy="Measure on a machine that has one."
        )
    return "cpu"


@contextmanager
def _memory() -> Iterator[None]:
    """What torch says when memory runs out, as an error with a remedy."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"the device's memory does not suffice: {str(error).splitlines()[0]}",
            remedy="Nothing was scored. A smaller engine.batch_size needs less.",
        ) from None
