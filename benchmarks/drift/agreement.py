"""How far transformers and vLLM are apart on the same tokens of the same checkpoint: what drift's tolerance rests on.

    python -m benchmarks.drift.agreement CHECKPOINT...

Each checkpoint is served, asked for its log-probabilities (50 texts, 5 most likely tokens) and compared with its own
forward pass in transformers; the baseline is the reference target. Needs `.venv-vllm` (`make vllm`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.drift.pair import ROOT, TARGET
from evals.client import Endpoint
from evals.drift import baseline_states, drift, kept_texts, texts_of
from evals.engine_check import probe
from evals.server import VllmServer
from evals.spec import EngineSpec, EvaluateSpec


def ask(spec: EvaluateSpec, model: Path, states: Path, out: Path) -> None:
    """Serve a checkpoint and keep what the engine says in `out`."""
    out.mkdir()
    asked = probe(spec, lambda: kept_texts(states), out)
    assert asked is not None
    with VllmServer(model, EngineSpec(), log=out / "vllm.log", root=ROOT) as server:
        asked(Endpoint(server.base_url, server.api_key, server.served_name, server.require_alive))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    args = parser.parse_args()
    spec = EvaluateSpec()
    head = (
        "checkpoint",
        "texts",
        "positions",
        "p50",
        "p99",
        "max",
        "top-k p99",
        "same top token",
        "top token near",
        "passed",
    )
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        states = folder / "states"
        states.mkdir()
        baseline_states(spec, model=TARGET, texts=texts_of(spec, TARGET, ROOT), out=states)
        ask(spec, TARGET, states, folder / "baseline")
        for number, checkpoint in enumerate(args.checkpoints):
            out = folder / str(number)
            ask(spec, checkpoint, states, out)
            engine = {"baseline": folder / "baseline", "candidate": out}
            found = drift(spec, baseline=TARGET, candidate=checkpoint, states=states, out=out, engine=engine)
            sides = [("bf16 baseline", "baseline")] if number == 0 else []
            for label, side in [*sides, (str(checkpoint), "candidate")]:
                c = found["check"][side]
                print(
                    f"| {label} | {c['texts']} | {c['positions']} | {c['logprob_p50']:.4f} | {c['logprob_p99']:.4f} | "
                    f"{c['logprob_max']:.3f} | {c['top_k_p99']:.4f} | {100 * c['top1_agreement']:.2f} % | "
                    f"{100 * c['top1_near']:.2f} % | "
                    f"{c['passed']} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
