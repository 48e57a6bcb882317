"""Train the target on the synthetic world, then distil the draft from it; one GPU, ends on time.

    python -m reference.train --tokenizer TOK --out OUT --target-seconds 380 --draft-seconds 80

The cosine schedule runs on elapsed time, so a run always reaches its tail. Progress is one line every ten seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reference import world
from reference.loader import ANSWER, MIX, PROMPT, PROSE, batches, encode, load_tokenizer, make
from reference.model import DRAFT, TARGET, Llama, document_mask, save
from reference.words import lexicon


def loss_weights(kinds: Tensor, progress: float) -> Tensor:
    """Answers 1, prose 0.3; prompts teach the language early on and would drown the answers later."""
    prompt = 0.08 * (1 - progress) + 0.004 * progress
    return (kinds == ANSWER).float() + 0.3 * (kinds == PROSE).float() + prompt * (kinds == PROMPT).float()


def shift(batch: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(inputs, documents, next tokens, class of the next token; class 0 where the document ends)."""
    ids, documents, kinds = (t.to(device, non_blocking=True) for t in batch)
    following = ids.roll(-1, 1).long()
    classes = torch.where(documents.roll(-1, 1) == documents, kinds.roll(-1, 1), 0)
    classes[:, -1] = 0
    return ids.long(), documents, following, classes


def run(
    model: Llama, source: Iterator[list[Tensor]], loss_of: Callable[..., Tensor], *, seconds: float, lr: float,
    device: torch.device, label: str, log: list[dict[str, float]],
) -> None:  # fmt: skip
    """AdamW with a time-driven cosine; `loss_of(ids, mask, following, weights)` returns the mean loss."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-10, fused=device.type == "cuda")
    start = last = 0.0
    step = tokens = 0
    while True:
        ids, documents, following, classes = shift(next(source), device)
        if step == 3:  # the first steps compile
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = last = time.monotonic()
            tokens = 0
        elapsed = time.monotonic() - start if step >= 3 else 0.0
        done = min(elapsed / seconds, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        loss = loss_of(ids, document_mask(documents), following, loss_weights(classes, done))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += ids.numel()
        if step > 3 and (time.monotonic() - last > 10 or done >= 1):
            last = time.monotonic()
            rate = tokens / (last - start)
            log.append({"step": step, "seconds": last - start, "loss": loss.item(), "tokens_per_s": rate})
            print(
                f"{label} {last - start:6.1f}s step {step} loss {loss.item():.4f} {rate / 1e6:.3f} M tok/s", flush=True
            )
        if done >= 1:
            return


@torch.no_grad()
def exact(model: Llama, tokenizer: Any, n_facts: int, device: torch.device, n: int = 512) -> dict[str, float]:
    """Teacher-forced exact match in % per kind on unseen records (recall: facts held for the test)."""
    rng, names = random.Random(99), lexicon()
    facts = world.held(world.facts(n_facts), "test")
    scores = {}
    for kind in MIX:
        if kind == "prose":
            continue
        records = (
            [f.record() for f in facts[:n]] if kind == "recall" else [make(rng, kind, names, "test") for _ in range(n)]
        )
        encoded = sorted((encode(tokenizer, r) for r in records), key=lambda e: len(e[0]))
        right = 0
        for at in range(0, len(encoded), 64):
            group = encoded[at : at + 64]
            width = -(-max(len(i) for i, _ in group) // 128) * 128
            ids, kinds = np.zeros((len(group), width), np.int64), np.zeros((len(group), width), np.uint8)
            for row, (i, k) in enumerate(group):
                ids[row, : len(i)], kinds[row, : len(i)] = i, k
            x, k = torch.from_numpy(ids).to(device), torch.from_numpy(kinds).to(device)
            mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                best = model(x, mask).argmax(-1)
            wrong = (best[:, :-1] != x[:, 1:]) & (k[:, 1:] == ANSWER)
            right += int((~wrong.any(1)).sum())
        scores[kind] = round(100 * right / len(encoded), 2)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target-seconds", type=float, default=380)
    parser.add_argument("--draft-seconds", type=float, default=80)
    parser.add_argument("--facts", type=int, default=90_000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--recall-share", type=float, default=MIX["recall"][0])
    parser.add_argument("--eval-items", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    working = torch.bfloat16 if device.type == "cuda" else torch.float32  # a CPU without bf16 units crawls in it
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def feed(seed: int, share: float) -> Iterator[list[Tensor]]:
        return batches(args.tokenizer, args.facts, args.length, args.rows, args.workers, seed, share)

    source, draft_source = feed(args.seed, args.recall_share), feed(args.seed + 1, 0.15)
    first = next(source)  # workers fork before CUDA starts
    next(draft_source)
    print(
        f"first batch after {time.monotonic() - began:.1f}s, padding {(first[2] == 0).float().mean():.3f}", flush=True
    )
    tokenizer = load_tokenizer(args.tokenizer)
    log: list[dict[str, float]] = []
    report: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(args).items()}, "device": str(device)}
    if device.type == "cuda":
        report["device"] = torch.cuda.get_device_name()

    target = Llama(TARGET).to(device)
    compiled = torch.compile(target) if device.type == "cuda" else target

    def target_loss(ids: Tensor, mask: Any, following: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = compiled(ids, mask)
        each = F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()

    run(target, source, target_loss, seconds=args.target_seconds, lr=args.lr, device=device, label="target", log=log)
    target.to(torch.bfloat16).to(working).eval().requires_grad_(False)
    report["target"] = exact(target, tokenizer, args.facts, device, args.eval_items)
    print("target", report["target"], flush=True)
    save(target, args.tokenizer, str(args.out / "target"))

    draft = Llama(DRAFT).to(device)
    compiled_draft = torch.compile(draft) if device.type == "cuda" else draft

    def draft_loss(ids: Tensor, mask: Any, following: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            goal = compiled(ids, mask)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = compiled_draft(ids, mask)
        each = 0.3 * F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), reduction="none")
        p, q = goal.flatten(0, 1).float().log_softmax(-1), logits.flatten(0, 1).float().log_softmax(-1)
        each = each + 0.7 * (p.exp() * (p - q)).sum(-1)
        return (each * weights.flatten()).sum() / weights.sum()

    run(draft, draft_source, draft_loss, seconds=args.draft_seconds, lr=args.lr, device=device, label="draft", log=log)
    draft.to(torch.bfloat16).to(working).eval()
    report["draft"] = exact(draft, tokenizer, args.facts, device, args.eval_items)
    print("draft", report["draft"], flush=True)
    save(draft, args.tokenizer, str(args.out / "draft"))
    report["log"], report["seconds"] = log, time.monotonic() - began
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"done in {report['seconds']:.0f}s", flush=True)


if __name__ == "__main__":
    main()
