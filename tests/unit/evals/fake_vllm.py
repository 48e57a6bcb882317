"""What stands in `bin/vllm` in the quick tests: a server with vLLM's addresses and a few faults on request.

FAKE_VLLM: ok | port_taken_once:FILE | oom | silent (never healthy) | foreign (does not know the key) |
die_after:N (ends after N answers) | fickle:N (every N-th answer is a toss-up) | busy:N (the first N requests get a
503) | no_echo (gives no log-probabilities of a prompt). It starts a child of its own session, as a worker that would
outlive it. FAKE_VLLM_BODIES names a file that gets the body of each chat request. A token is a byte; one with an even
number is the likeliest, and its log-probability is minus a thousandth of its number.
"""

import json
import os
import random
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

mode, _, value = os.environ.get("FAKE_VLLM", "ok").partition(":")
args = sys.argv[1:]
port = int(args[args.index("--port") + 1])
worker = subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"],
    start_new_session=True,
)
print(f"(EngineCore pid={worker.pid}) INFO 01-01 00:00:00 [x.py:1] worker_pid={worker.pid}", flush=True)
if mode == "port_taken_once" and not Path(value).exists():
    Path(value).touch()
    print("OSError: [Errno 98] Address already in use", flush=True)
    sys.exit(1)
if mode == "oom":
    print("(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1] EngineCore failed to start.", flush=True)
    print("(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB", flush=True)
    print("RuntimeError: Engine core initialization failed.", flush=True)
    sys.exit(1)
print("(W pid=8) INFO 01-01 00:00:00 [m.py:1] Using FakeKernel for CompressedTensorsWNA16", flush=True)
print(
    "(E pid=7) INFO 01-01 00:00:00 [core.py:1] Initializing a V1 LLM engine (v9) with config: "
    "model='m', dtype=torch.bfloat16, quantization=compressed-tensors, kv_cache_dtype=auto",
    flush=True,
)
answered = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        return mode != "foreign" and self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"

    def do_GET(self):
        if self.path == "/health":
            self.reply(503 if mode == "silent" else 200, {})
        elif self.path == "/version":
            self.reply(200, {"version": "9.9.9"})
        elif not self.allowed():
            self.reply(401, {"error": "Unauthorized"})
        else:
            self.reply(200, {"data": [{"id": "model"}]})

    def do_POST(self):
        global answered
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answered += 1
        if not self.allowed():
            self.reply(401, {"error": {"message": "Unauthorized"}})
            return
        if mode == "die_after" and answered > int(value):
            print("RuntimeError: the fake engine died", flush=True)
            os._exit(3)
        if mode == "busy" and answered <= int(value):
            self.reply(503, {"error": {"message": "busy"}})
        elif self.path == "/tokenize":
            text = body.get("prompt") or "".join(m["content"] for m in body["messages"])
            self.reply(200, {"tokens": list(text.encode())})
        elif self.path == "/v1/completions":
            self.complete(body)
        else:
            self.chat(body)

    def complete(self, body):
        if body.get("echo"):
            tokens = body["prompt"]
            logprobs = {
                "token_logprobs": [None, *[-t / 1000 for t in tokens[1:]]],
                "top_logprobs": [None, *[{"x": -t / 1000 + t % 2} for t in tokens[1:]]],
            }
            choices = [{"index": 0, "text": "", "logprobs": None if mode == "no_echo" else logprobs}]
        else:
            choices = [
                {
                    "index": index,
                    "prompt_logprobs": [None, *[{str(t): {"logprob": -t / 1000, "rank": 1 + t % 2}} for t in ids[1:]]],
                }
                for index, ids in enumerate(body["prompt"])
            ]
        self.reply(200, {"choices": choices[::-1]})

    def chat(self, body):
        if "FAKE_VLLM_BODIES" in os.environ:
            with Path(os.environ["FAKE_VLLM_BODIES"]).open("a") as handle:
                handle.write(json.dumps(body) + "\n")
        said = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": said.removeprefix("say ")}
        if mode == "fickle" and sum(said.encode()) % int(value) == 0:
            message["content"] += random.choice(("", " or not"))
        reason = "stop"
        if body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            message = {"content": None, "tool_calls": [{"function": {"name": name, "arguments": said}}]}
            reason = "tool_calls"
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        self.reply(200, {"choices": [{"message": message, "finish_reason": reason}], "usage": usage})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", port), Handler).serve_forever()
