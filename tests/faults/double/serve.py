"""What stands in `bin/vllm` for the faults: vLLM's addresses, its streams and counters, deterministic answers.

It echoes what it is asked to say. A checkpoint that was rounded to 2 bits gets every third item wrong, so that a
candidate can regress. Like vLLM it has a worker in a session of its own: one that ends with the server, or, with
FAULTS_STUBBORN, one that ignores SIGTERM and would live on for ever. FAULTS_PACE is how long an answer takes, in
seconds. The standard library only: it has to start fast.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

args = sys.argv[2:]
model = Path(args[0])
port = int(args[args.index("--port") + 1])
speculates = "--speculative-config" in args
pace = float(os.environ.get("FAULTS_PACE", "0"))
note = model / "simulated.json"
worse = note.is_file() and json.loads(note.read_text())["bits"] == 2
if "FAULTS_STUBBORN" in os.environ:
    worker = subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 600"], start_new_session=True)
else:
    worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
print(f"(EngineCore pid={worker.pid}) INFO 01-01 00:00:00 [x.py:1] worker_pid={worker.pid}", flush=True)
print("(W pid=8) INFO 01-01 00:00:00 [m.py:1] Using FakeKernel for CompressedTensorsWNA16", flush=True)
lock = threading.Lock()
steps = words = 0


def said(body):
    text = body["messages"][-1]["content"].removeprefix("say ")
    number = int(text.rpartition(" ")[2])
    return text + " or not" if worse and number % 3 == 0 else text


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: together they would wait 40 ms for each other

    def log_message(self, *_):
        pass

    def reply(self, status, value):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/health":
            self.reply(200, {})
        elif self.path == "/version":
            self.reply(200, {"version": "9.9.9"})
        elif self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.reply(401, {"error": "Unauthorized"})
        elif self.path == "/metrics":
            self.reply(200, metrics())
        else:
            self.reply(200, {"data": [{"id": "model"}]})

    def do_POST(self):
        global words
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(pace)
        text = said(body)
        usage = {"prompt_tokens": 3, "completion_tokens": len(text.split())}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            self.reply(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})
            return
        report = speculation(usage["completion_tokens"]) if speculates else None
        with lock:
            words += usage["completion_tokens"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        chunks = [choice({"content": word + " "}) for word in text.split()] + [choice({}, "stop")]
        last = {"id": "x", "choices": [], "usage": usage, "metrics": {"speculative_decoding": report}}
        for chunk in [*chunks, last]:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def choice(delta, reason=None):
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def speculation(count):
    """Each step accepts 3 of 4 drafted tokens."""
    global steps
    with lock:
        steps += count
    return {
        "acceptance_histogram": [0, 0, 0, count, 0],
        "num_spec_steps": count,
        "num_accepted_draft_tokens": 3 * count,
        "num_draft_tokens": 4 * count,
        "mean_acceptance_length": 4.0,
        "draft_acceptance_rate": 0.75,
        "num_spec_tokens": 4,
    }


def metrics():
    lines = ["# TYPE vllm:num_requests_running gauge", 'vllm:num_requests_running{engine="0"} 0.0']
    lines += ["# TYPE vllm:generation_tokens_total counter", f'vllm:generation_tokens_total{{engine="0"}} {words}.0']
    if speculates:
        name = "vllm:spec_decode_num_"
        for key, value in (("drafts", steps), ("draft_tokens", 4 * steps), ("accepted_tokens", 3 * steps)):
            lines += [f"# TYPE {name}{key}_total counter", f'{name}{key}_total{{engine="0"}} {value}.0']
        key = f"{name}accepted_tokens_per_pos_total"
        lines.append(f"# TYPE {key} counter")
        lines += [f'{key}{{engine="0",position="{at}"}} {steps if at < 3 else 0}.0' for at in range(4)]
    return "\n".join(lines) + "\n"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def follow():
    """Without its engine a server is no server."""
    worker.wait()
    print("RuntimeError: the engine core died", flush=True)
    os._exit(1)


threading.Thread(target=follow, daemon=True).start()
Server(("127.0.0.1", port), Handler).serve_forever()
