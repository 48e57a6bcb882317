"""The lm-eval model that asks a running server, over the completions API: vLLM's, or what other servers have
of it.

lm-eval's own `local-completions` needs three more packages, sends one API key from the environment for everything, and
gives no reason why an answer ended. The rules here are those of lm-eval's HFLM: its tokenization, its cuts, its stops.
Prompts are token ids, so that the server adds and takes away nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from evals.client import Endpoint
from evals.engines.base import Limits
from evals.engines.http import ECHO, echoed
from evals.harness.catalogue import SERVED_SAMPLING
from evals.harness.completions import ask, completion, ranked
from evals.harness.models import Ledger
from evals.scorers import Loglikelihood
from sqtool.errors import DataError
from sqtool.files import sha256_text
from sqtool.templates import limited

T = TypeVar("T")


class Served(TemplateLM):
    """See the module. `shuffled` asks in another order than usual, for the A/A control."""

    max_gen_toks = 256
    """HFLM's, for tasks that do not say how long an answer may be."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Any,
        config: Any,
        *,
        limits: Limits,
        max_length: int | None = None,
        seed: int = 0,
        shuffled: bool = False,
    ) -> None:
        """`tokenizer` and `config` are the checkpoint's; `max_length` is the server's context where it is shorter."""
        super().__init__()
        self.ledger = Ledger()
        self.endpoint, self.limits, self.seed, self.shuffled = endpoint, limits, seed, shuffled
        self.tokenizer = tokenizer
        self._asking: Sequence[Any] = ()
        longest = resolve_max_length(config, tokenizer)
        self.max_length = longest if max_length is None else min(longest, max_length)
        self._bos = tokenizer.decode(self.prefix_token_id)

    @classmethod
    def of(
        cls, model: Path, endpoint: Endpoint, *, limits: Limits, max_length: int | None, seed: int, shuffled: bool
    ) -> Served:
        """With the tokenizer and the context of the checkpoint in `model`."""
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True, trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise DataError(
                model / "tokenizer_config.json",
                "the tokenizer has no end token, and lm-eval's tasks need one",
                field="eos_token",
            )
        config = AutoConfig.from_pretrained(str(model), local_files_only=True, trust_remote_code=False)
        return cls(endpoint, tokenizer, config, limits=limits, max_length=max_length, seed=seed, shuffled=shuffled)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        # A rendered chat template begins with the token that the tokenizer would add once more.
        twice = add_special_tokens is None and has_bos_prefix(string, self._bos)
        options = {"add_special_tokens": bool(add_special_tokens)} if twice or add_special_tokens is not None else {}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        with limited(self.tokenizer.name_or_path):
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked: Counter[int] = Counter()
        eos = self.tokenizer.decode(self.eot_token_id)
        bodies: list[dict[str, Any]] = []
        stops: list[list[str]] = []
        for request in requests:
            prompt, settings = request.args[:2]
            options = normalize_gen_kwargs(settings, self.max_gen_toks)
            limit = int(options["max_gen_toks"])
            if limit >= self.max_length:
                raise DataError(
                    f"lm-eval task {request.task_name}",
                    f"an answer may have {limit} tokens, and the model's context is {self.max_length}",
                    field="generation_kwargs.max_gen_toks",
                    remedy="Set evaluate.lm_eval.gen_kwargs: {max_gen_toks: ...} lower.",
                )
            ids = self.tok_encode(prompt)
            room = self.max_length - limit
            self.ledger.shortened += len(ids) > room
            stops.append(handle_stop_sequences(list(options["until"]), eos))
            body = {
                "prompt": ids[-room:],
                "max_tokens": limit,
                # vLLM ends at the end token itself, and never shows it.
                "stop": [text for text in stops[-1] if text and text != eos],
                **self._sampling(options),
            }
            if not options["do_sample"]:
                body["temperature"] = 0.0
            elif body["temperature"] > 0:
                body["seed"] = self.seed + asked[request.doc_id]  # a repeated question is to be answered anew
            asked[request.doc_id] += 1
            bodies.append(body)
        answers = self._ask(requests, "generate_until", bodies, [completion] * len(bodies))
        texts = []
        for request, answer, stop in zip(requests, answers, stops, strict=True):
            texts.append(postprocess_generated_text(answer.text, stop, None))
            self.ledger.answers.setdefault(request.doc_id, []).append(answer)
        return texts

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of vLLM every parameter that the checkpoint could set; of other servers, which may refuse what OpenAI's API
        does not have, the temperature and what a task that samples names."""
        if self.endpoint.vllm:
            return {name: options.get(name, neutral) for name, neutral in SERVED_SAMPLING.items()}
        named = {name: options[name] for name in SERVED_SAMPLING if name in options} if options["do_sample"] else {}
        return {"temperature": 0.0, **named}

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._asking = requests
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        for pair, context, continuation in requests:
            self.ledger.tokens[pair] = len(context), len(continuation)
        found = self._likelihoods(self._asking, "loglikelihood", [(c, d) for _, c, d in requests])
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            parts = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for part in map(utils.make_disjoint_window, parts):
                windows.append(part)
                owners.append(number)
        found = self._likelihoods([requests[owner] for owner in owners], "loglikelihood_rolling", windows)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, found, strict=True):
            totals[owner] += one.logprob
        return totals

    def _likelihoods(
        self, requests: Sequence[Any], attr: str, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> list[Loglikelihood]:
        bodies: list[dict[str, Any]] = []
        parsers: list[Callable[[Any], Loglikelihood]] = []
        for request, (context, continuation) in zip(requests, pairs, strict=True):
            # One place of the server's context is for the token that it must generate.
            ids = (list(context) + list(continuation))[-(self.max_length - 1) :]
            if not 0 < len(continuation) < len(ids):
                raise DataError(
                    f"lm-eval task {request.task_name}, item {request.doc_id}",
                    f"a continuation of {len(continuation)} tokens cannot be scored in a context of {self.max_length}",
                )
            self.ledger.shortened += len(ids) < len(context) + len(continuation)
            if self.endpoint.vllm:
                bodies.append({"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, **SERVED_SAMPLING})
                parsers.append(ranked(ids, list(continuation)))
            else:
                bodies.append({"prompt": ids, **ECHO})
                start = len(ids) - len(continuation)
                parsers.append(partial(echoed, base_url=self.endpoint.base_url, start=start, length=len(ids)))
        return self._ask(requests, attr, bodies, parsers)

    def _ask(
        self,
        requests: Sequence[Any],
        attr: str,
        bodies: Sequence[dict[str, Any]],
        parsers: Sequence[Callable[[Any], T]],
    ) -> list[T]:
        """Answers in the order of the requests."""
        names = [f"{r.task_name} {r.doc_id}" for r in requests]
        order = list(range(len(bodies)))
        if self.shuffled:
            order.sort(key=lambda at: sha256_text(f"control {names[at]} {at}"))

        def run() -> list[T]:
            def done(at: int) -> None:
                self.cache_hook.add_partial(attr, requests[at].args, None)

            return asyncio.run(
                ask(self.endpoint, self.limits, names=names, bodies=bodies, parsers=parsers, order=order, done=done)
            )

        return self.ledger.following(self, requests, run)
