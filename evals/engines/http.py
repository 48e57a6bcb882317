"""Log-likelihoods over the OpenAI API, by the two ways in which servers give them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from evals.client import COMPLETIONS, NEUTRAL, Endpoint, each, request
from evals.engines.base import Done, Limits, Question
from evals.items import Item
from evals.scorers import Answer, Loglikelihood
from sqtool.errors import DataError, EngineError

if TYPE_CHECKING:
    import httpx

TOKENIZE = "/tokenize"
ECHO = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
"""What asks OpenAI's API for the log-probabilities of a prompt."""
Tokens = list[int]


def answer_of(item: Item, texts: Sequence[str], prompt: Sequence[int], found: Sequence[Loglikelihood]) -> Answer:
    """The answer to a question for log-likelihoods; `DataError` for a continuation that has no tokens."""
    for text, one in zip(texts, found, strict=True):
        if one.tokens == 0:
            raise DataError(f"item {item.id}", f"the continuation {text!r} has no tokens, so it has no probability")
    return Answer(
        prompt_tokens=len(prompt), completion_tokens=sum(one.tokens for one in found), loglikelihoods=tuple(found)
    )


async def by_prompt_logprobs(
    endpoint: Endpoint,
    questions: Sequence[Question],
    continuations: Callable[[Item], Sequence[str]],
    limits: Limits,
    done: Done,
) -> None:
    """vLLM's way: its own tokenizer and template (`/tokenize`), token ids as prompts, `prompt_logprobs`.

    With `prompt_logprobs: 0` a position has the log-probability of its token (before any temperature or penalty) and
    the token's rank; rank 1 means that it was the likeliest.
    """
    known: dict[str, Tokens] = {}

    async def one(client: httpx.AsyncClient, question: Question) -> Answer:
        item, texts = question.item, list(continuations(question.item))

        async def tokens(body: dict[str, Any]) -> Tokens:
            return await request(client, endpoint, TOKENIZE, {"model": endpoint.model, **body}, _ids, item.id, limits)

        asked: dict[str, Any] = {"messages": item.wire_messages(), "add_generation_prompt": True}
        prompt = await tokens({**asked, "tools": list(item.tools)} if item.tools else asked)
        for text in texts:
            if text not in known:  # choices are the same few texts again and again
                known[text] = await tokens({"prompt": text, "add_special_tokens": False})
        endings = [known[text] for text in texts]
        body = {
            "model": endpoint.model,
            "prompt": [prompt + ending for ending in endings],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            **NEUTRAL,
        }
        found = await request(
            client, endpoint, COMPLETIONS, body, lambda value: _ranked(value, prompt, endings), item.id, limits
        )
        return answer_of(item, texts, prompt, found)

    await each(endpoint, questions, limits, one, done)


def _ids(value: Any) -> Tokens:
    try:
        found = value["tokens"]
        if not isinstance(found, list) or not all(type(token) is int for token in found):
            raise TypeError("tokens must be a list of whole numbers")
        return found
    except (KeyError, TypeError) as error:
        raise ValueError(f"no tokens ({type(error).__name__}: {error})") from None


def _ranked(value: Any, prompt: Tokens, endings: Sequence[Tokens]) -> list[Loglikelihood]:
    """The log-likelihoods in an answer to prompts of token ids with `prompt_logprobs`, in the order of the prompts."""
    try:
        choices = sorted(value["choices"], key=lambda choice: int(choice["index"]))
        found = []
        for choice, ending in zip(choices, endings, strict=True):
            rows = choice["prompt_logprobs"]
            if len(rows) != len(prompt) + len(ending):
                raise ValueError(f"{len(rows)} positions for {len(prompt) + len(ending)} tokens")
            places = [row[str(token)] for row, token in zip(rows[len(prompt) :], ending, strict=True)]
            total = sum(float(place["logprob"]) for place in places)
            found.append(Loglikelihood(total, len(ending), all(int(place["rank"]) == 1 for place in places)))
        return found
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from None


async def by_echo(
    endpoint: Endpoint,
    questions: Sequence[Question],
    tokens_of: Callable[[Item], tuple[Tokens, list[Tokens]]],
    continuations: Callable[[Item], Sequence[str]],
    limits: Limits,
    done: Done,
) -> None:
    """The API's own way: the completion of nothing, with the prompt echoed and its log-probabilities.

    `tokens_of` gives an item's prompt and its continuations as token ids. `EngineError` for a server that does not
    offer this, which many do not.
    """

    async def one(client: httpx.AsyncClient, question: Question) -> Answer:
        prompt, endings = tokens_of(question.item)
        texts = continuations(question.item)
        found = [await _echoed(client, endpoint, question.item, prompt, ending, limits) for ending in endings]
        return answer_of(question.item, texts, prompt, found)

    await each(endpoint, questions, limits, one, done)


def _echoed(
    client: httpx.AsyncClient, endpoint: Endpoint, item: Item, prompt: Tokens, ending: Tokens, limits: Limits
) -> Awaitable[Loglikelihood]:
    body = {"model": endpoint.model, "prompt": prompt + ending, **ECHO}
    parse = partial(echoed, base_url=endpoint.base_url, start=len(prompt), length=len(prompt) + len(ending))
    return request(client, endpoint, COMPLETIONS, body, parse, item.id, limits)


def echoed(value: Any, *, base_url: str, start: int, length: int) -> Loglikelihood:
    """The log-likelihood of the tokens from `start` on, in an answer to a prompt of `length` tokens with `ECHO`.

    `ValueError` for garbage, `EngineError` for a server that does not offer it.
    """
    try:
        given = value["choices"][0].get("logprobs")
        chosen = given and given.get("token_logprobs")
        if not chosen or len(chosen) != length:
            raise EngineError(
                f"{base_url} does not give the log-probabilities of a prompt ({COMPLETIONS} with echo and "
                "logprobs), which this task needs",
                remedy="Evaluate such tasks with `engine: {kind: vllm}` or `{kind: hf}`.",
            )
        at = slice(start, None)
        best = [max(place.values()) for place in given["top_logprobs"][at]]
        places = [float(place) for place in chosen[at]]
        greedy = all(place >= top for place, top in zip(places, best, strict=True))
        return Loglikelihood(sum(places), length - start, greedy)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a completion ({type(error).__name__}: {error})") from None
