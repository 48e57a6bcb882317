"""Arms that are servers which run already: asked as they are, never started, stopped, or taken for another model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import EngineError, UsageError
from sqtool.files import read_json
from sqtool.progress import SILENT
from sqtool.runfolder import discard
from sqtool.speculate.remote import changed
from sqtool.speculate.run import preflight, speculate
from sqtool.speculate.spec import SpeculateSpec

KEY = "a-key-that-nobody-may-find"
NAMES = ("baseline", "quantized", "speculative", "both")


class Running:
    """A server that serves one model and counts as vLLM does; what it does wrong is set from outside."""

    def __init__(self, name: str, *, drafts: int = 0) -> None:
        self.name, self.drafts = name, drafts
        self.said = name
        self.version: str | None = "9.9.9"
        self.owner = "vllm"
        self.metrics_status = 200
        self.extra_tokens = 0
        self.tokens = self.verified = self.posts = 0
        self.bodies: list[dict[str, Any]] = []
        self.on_post: Callable[[Running], int] = lambda _: 200
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def reply(self, text: str, status: int = 200, **headers: str) -> None:
                data = text.encode()
                self.send_response(status)
                for header, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
                    self.send_header(header, value)
                self.close_connection = True
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    self.reply('{"error": "no such key"}', 401)
                elif self.path == "/v1/models":
                    entry = {
                        "id": outer.name,
                        "owned_by": outer.owner,
                        "root": f"/models/{outer.name}",
                        "max_model_len": 64,
                    }
                    self.reply(json.dumps({"data": [entry]}))
                elif self.path == "/version" and outer.version:
                    self.reply(json.dumps({"version": outer.version}))
                elif self.path == "/metrics":
                    self.reply(outer.metrics(), outer.metrics_status)
                else:
                    self.reply("{}", 404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.posts += 1
                    outer.bodies.append(body)
                status = outer.on_post(outer)
                if status != 200:
                    self.reply(f'{{"error": "not with {KEY}"}}', status)
                    return
                with outer.lock:
                    outer.tokens += 2 + outer.extra_tokens
                    outer.verified += 1
                if not body.get("stream"):
                    message = {"role": "assistant", "content": body["messages"][-1]["content"]}
                    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                    counts = {"prompt_tokens": 3, "completion_tokens": 2}
                    self.reply(json.dumps({"model": outer.said, "choices": choices, "usage": counts}))
                    return
                choice = {"index": 0, "delta": {"content": body["messages"][-1]["content"]}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 3, "completion_tokens": 2}
                parts = (
                    {"model": outer.said, "choices": [choice]},
                    {"model": outer.said, "choices": [], "usage": usage},
                )
                text = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
                self.reply(text, **{"Content-Type": "text/event-stream"})

        class Listening(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.http: ThreadingHTTPServer | None = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def metrics(self) -> str:
        label = f'{{model_name="{self.name}"}}'
        lines = [f"vllm:num_requests_running{label} 0.0", f"vllm:generation_tokens_total{label} {float(self.tokens)}"]
        if self.drafts:
            at = f'{{model_name="{self.name}",position="'
            lines += [
                f"vllm:spec_decode_num_drafts_total{label} {float(self.verified)}",
                f"vllm:spec_decode_num_draft_tokens_total{label} {float(self.drafts * self.verified)}",
                f"vllm:spec_decode_num_accepted_tokens_total{label} {float(self.verified)}",
                *(
                    f'vllm:spec_decode_num_accepted_tokens_per_pos_total{at}{n}"}} {float(self.verified * (n == 0))}'
                    for n in range(self.drafts)
                ),
            ]
        return "\n".join(lines) + "\n"

    def end(self) -> None:
        http, self.http = self.http, None
        if http is not None:
            http.shutdown()
            http.server_close()
            self.thread.join()


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Running]]:
    monkeypatch.setenv("SERVING", KEY)
    servers = {name: Running(name, drafts=4 if name in ("speculative", "both") else 0) for name in NAMES}
    yield servers
    for server in servers.values():
        server.end()


def place(server: Running) -> dict[str, Any]:
    return {"url": server.url, "model": server.name, "api_key_env": "SERVING"}


def spec_of(servers: dict[str, Running], **keys: Any) -> SpeculateSpec:
    usual = {"traffic": "traffic.jsonl", "requests": 12, "max_concurrency": 3, "warmup": 2, "repeats": 1}
    usual["cancellation"] = None
    return SpeculateSpec.model_validate({**usual, "arms": {n: place(s) for n, s in servers.items()}, **keys})


def run(root: Path, spec: SpeculateSpec, engine: EngineSpec | None = None, **more: Any) -> dict[str, Any]:
    out = root / "stage.tmp"
    out.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {"draft": None, **more}
    return speculate(
        spec,
        engine or EngineSpec(env="no-such-environment"),
        baseline=root / "target",
        candidate=root / "quantized",
        root=root,
        out=out,
        progress=SILENT,
        seed=0,
        **arguments,
    )


def everything_written(root: Path) -> str:
    return "".join(path.read_text() for path in (root / "stage.tmp").rglob("*") if path.is_file())


def reasons(report: dict[str, Any], measure: str) -> dict[str, str]:
    return {entry["arm"]: entry["reason"] for entry in report["missing"] if entry["measure"] == measure}


def test_all_four_run_elsewhere_and_no_vllm_is_needed_here(four: dict[str, Running], project: Path) -> None:
    report = run(project, spec_of(four, cancellation={"share": 0.2, "requests": 5}))
    assert [*report["arms"]] == [*NAMES, "baseline_again"]
    for name, arm in report["arms"].items():
        home = "baseline" if name == "baseline_again" else name
        assert arm["server"]["started_by_sqtool"] is False
        assert arm["server"]["url"] == four[home].url.removesuffix("/v1")
        assert arm["model"] == home
        assert arm["engine"]["version"] == "9.9.9"
        assert "not sqtool's" in arm["memory"]["missing"]["weights_bytes"]
        load = arm["loads"]["c3"]
        assert (load["requests"], load["failures"]["count"]) == (12, 0)
        assert arm["speculates"] is (home in ("speculative", "both"))
        if arm["speculates"]:
            assert load["speculation"]["source"] == "metrics"
            assert load["speculation"]["mean_acceptance_length"] == 2.0
    for measure in ("start_seconds", "kernels", "flags", "memory.weights_bytes", "memory.peak_bytes"):
        assert set(reasons(report, measure)) == {*NAMES, "baseline_again"}, measure
    assert read_json(project / "stage.tmp/arms/baseline_again/arm.json")["shares_server_of"] == "baseline"
    assert read_json(project / "stage.tmp/plan.json")["why"] == "every server runs already"
    assert KEY not in everything_written(project)
    assert str(project) not in (project / "stage.tmp/speculate.json").read_text()
    assert all(server.http is not None for server in four.values())
    assert changed(report["arms"]) == ("", [])


def test_beside_servers_that_are_started_here(fake: Any, four: dict[str, Running], project: Path) -> None:
    spec = spec_of({"speculative": four["speculative"]}, interleave="never")
    report = run(project, spec, EngineSpec(kv_cache_memory_bytes=1 << 20), draft=project / "draft")
    assert len(fake.started) == 4
    assert "server" not in report["arms"]["both"]
    assert report["arms"]["speculative"]["loads"]["c3"]["requests"] == 12
    again = read_json(project / "stage.tmp/arms/baseline_again/arm.json")
    assert "shares_server_of" not in again
    assert str(project) not in (project / "stage.tmp/speculate.json").read_text()


def test_the_tasks_are_asked_of_the_arms_servers_too(four: dict[str, Running], project: Path) -> None:
    item = {"messages": [{"role": "user", "content": "say it"}], "expected": {"text": "say it"}}
    (project / "items.jsonl").write_text("".join(json.dumps({**item, "id": f"i{n}"}) + "\n" for n in range(5)))
    (project / "echo.yaml").write_text("task: echo\nitems: items.jsonl\nscorer: exact_match\n")
    report = run(project, spec_of(four), evaluate=EvaluateSpec(tasks=("echo.yaml",), retries=0))
    assert report["arms"]["both"]["quality"]["echo/exact_match"] == 1.0
    assert report["arms"]["quantized"]["quality"] is None
    assert sum(not body.get("stream") for body in four["both"].bodies) == 5
    assert KEY not in everything_written(project)


def test_without_metrics_nothing_is_counted_and_the_reason_said(four: dict[str, Running], project: Path) -> None:
    four["both"].metrics_status = 404
    report = run(project, spec_of(four, cancellation={"share": 0.2, "requests": 5}))
    for measure in ("acceptance", "steps", "engine steps", "probe.running", "probe.kv_usage"):
        assert "/metrics answers with status 404" in reasons(report, measure)["both"], measure
    assert report["arms"]["both"]["loads"]["c3"]["latency"]["e2e_ms"]["n"] == 12
    assert "acceptance" not in {e["measure"] for e in report["missing"] if e["arm"] == "speculative"}


def test_others_tokens_are_not_taken_for_ours(four: dict[str, Running], project: Path) -> None:
    four["both"].extra_tokens = 5
    report = run(project, spec_of(four))
    assert "others asked the server too" in reasons(report, "acceptance")["both"]
    assert "speculative" not in reasons(report, "acceptance")


def test_another_kind_of_server_is_sent_no_parameters_of_vllms(four: dict[str, Running], project: Path) -> None:
    other = four["quantized"]
    other.metrics_status, other.version, other.owner = 404, None, "somebody"
    four["baseline"].metrics_status = 404
    report = run(project, spec_of(four))
    assert report["arms"]["quantized"]["engine"]["version"] == "unknown"
    for server in (other, four["baseline"]):
        assert all(body["temperature"] == 0 for body in server.bodies)
        named = {name for body in server.bodies for name in body} & {"top_k", "min_p", "cache_salt"}
        assert len(named) == (0 if server is other else 3), "without /metrics, it still says that it is owned by vllm"


@pytest.mark.parametrize("fault", ["refused", "other model", "no key", "wrong key"])
def test_refused_at_the_start(
    four: dict[str, Running], project: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(four)
    words = {
        "refused": (EngineError, "Connection refused", "speculate.arms.both.url"),
        "other model": (EngineError, "does not serve 'both'; did you mean 'bothe'", "speculate.arms.both.model"),
        "no key": (UsageError, "environment variable SERVING, which is not set", "export SERVING="),
        "wrong key": (EngineError, "answers with status 401", "speculate.arms.baseline.api_key_env"),
    }
    kind, message, remedy = words[fault]
    if fault == "refused":
        four["both"].end()
    elif fault == "other model":
        four["both"].name = "bothe"
    elif fault == "no key":
        monkeypatch.delenv("SERVING")
    else:
        monkeypatch.setenv("SERVING", "another-secret")
    with pytest.raises(kind) as caught:
        run(project, spec)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert "another-secret" not in str(caught.value)
    assert caught.value.exit_code == (2 if fault == "no key" else 4)
    if fault in ("refused", "other model"):
        assert four["both"].url.removesuffix("/v1") in caught.value.message
        assert "arm 'both'" in caught.value.message
    assert all(server.posts == 0 for server in four.values())


@pytest.mark.parametrize(
    ("arm", "drafts", "words"),
    [
        ("baseline", 4, "speculates, and the recipe says that it does not"),
        ("both", 0, "does not speculate, and the recipe says that it does"),
        ("both", 2, "drafts 2 tokens each time, and the recipe says 4"),
    ],
)
def test_what_the_recipe_declares_must_be_so(
    four: dict[str, Running], project: Path, arm: str, drafts: int, words: str
) -> None:
    four[arm].drafts = drafts
    with pytest.raises(UsageError, match=words):
        preflight(
            spec_of(four),
            EngineSpec(),
            baseline=project / "target",
            candidate=project / "quantized",
            draft=None,
            root=project,
        )


def test_one_that_dies_is_named_and_the_rest_is_kept(four: dict[str, Running], project: Path) -> None:
    def die(server: Running) -> int:
        if server.posts > 8:
            threading.Thread(target=server.end).start()
            server.on_post = lambda _: 500
            return 500
        return 200

    four["quantized"].on_post = die
    spec = spec_of(four, interleave="never")
    with pytest.raises(EngineError) as caught:
        run(project, spec)
    assert caught.value.exit_code == 4
    assert four["quantized"].url.removesuffix("/v1") in caught.value.message
    assert "arm 'quantized'" in caught.value.message
    assert "look at its own" in caught.value.remedy
    assert KEY not in str(caught.value) + caught.value.remedy + everything_written(project)
    assert read_json(project / "stage.tmp/arms/baseline/arm.json")["complete"] is True
    assert not (project / "stage.tmp/arms/quantized/arm.json").exists()


def test_a_key_that_a_server_repeats_is_not_kept(four: dict[str, Running], project: Path) -> None:
    four["both"].on_post = lambda server: 500 if server.posts == 6 else 200
    report = run(project, spec_of(four))
    assert report["arms"]["both"]["loads"]["c3"]["failures"]["count"] == 1
    assert KEY not in everything_written(project)


def test_an_answer_of_another_model_ends_the_run(four: dict[str, Running], project: Path) -> None:
    def turn(server: Running) -> int:
        server.said = "both" if server.posts < 6 else "somebody-else"
        return 200

    four["both"].on_post = turn
    with pytest.raises(EngineError, match="was asked for 'both' and answered by another model") as caught:
        run(project, spec_of(four))
    assert caught.value.exit_code == 4
    assert "somebody-else" not in everything_written(project)


def test_a_server_that_was_replaced_ends_the_run(four: dict[str, Running], project: Path) -> None:
    def restart(server: Running) -> int:
        server.version = "9.9.9" if server.posts < 6 else "10.0.0"
        return 200

    four["both"].on_post = restart
    with pytest.raises(EngineError, match=r"replaced while it was measured \(version: 9.9.9 then, 10.0.0 now\)"):
        run(project, spec_of(four))


@pytest.mark.parametrize("replaced", [False, True])
def test_the_next_run_takes_finished_arms_unless_a_server_is_another_one(
    four: dict[str, Running], project: Path, replaced: bool
) -> None:
    spec = spec_of(four, interleave="never")
    four["both"].on_post = lambda _: 500
    with pytest.raises(EngineError, match=r"every one of 2 requests failed.*at http://"):
        run(project, spec)
    discard(project / "stage", keep=project / "failed")
    four["both"].on_post = lambda _: 200
    four["quantized"].version = "10.0.0" if replaced else "9.9.9"
    asked = {name: server.posts for name, server in four.items()}
    run(project, spec, earlier=project / "failed")
    again = {name for name, server in four.items() if server.posts > asked[name]}
    # The control, which comes last, is asked of the baseline's server in any case.
    assert again == (set(NAMES) if replaced else {"both", "baseline"})
    assert four["baseline"].posts - asked["baseline"] == (28 if replaced else 14)
    assert "/models/" not in everything_written(project)


def test_a_result_is_stale_when_its_server_is_another_one(four: dict[str, Running], project: Path) -> None:
    report = run(project, spec_of(four))
    four["baseline"].end()
    assert changed(report["arms"], 1.0) == ("", ["baseline"])
    four["both"].version = "10.0.0"
    why, _ = changed(report["arms"], 1.0)
    assert why == "the server of arm both is another one (version: 9.9.9 then, 10.0.0 now)"
