"""What stands in `bin/vllm` in the tests of processes: a server with vLLM's addresses, streams, counters, and faults.

FAKE_FAULT is "ARM FAULT": ARM is the checkpoint's folder name, with a + where it speculates; FAULT is one of
oom | port_taken_once:FILE | kill_after:N (SIGKILLs itself at the N-th request) | hang_after:N (answers nothing any
more, health neither). It starts a child of its own session, as a worker that would outlive it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

args = sys.argv[1:]
port = int(args[args.index("--port") + 1])
arm = Path(args[1]).name + ("+" if "--speculative-config" in args else "")
wanted, _, fault = os.environ.get("FAKE_FAULT", "").partition(" ")
mode, _, value = (fault if wanted == arm else "").partition(":")
worker = subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"],
    start_new_session=True,
)
with Path(os.environ["FAKE_PIDS"]).open("a") as pids:
    pids.write(f"{os.getpid()}\n{worker.pid}\n")
if mode == "port_taken_once" and not Path(value).exists():
    Path(value).touch()
    print("OSError: [Errno 98] Address already in use", flush=True)
    sys.exit(1)
if mode == "oom":
    print("(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1] EngineCore failed to start.", flush=True)
    print("(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB", flush=True)
    sys.exit(1)
print("CPU KV cache size: 4,096 tokens, Maximum concurrency for 64 tokens", flush=True)
answered = 0
drafts = 0
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, text, status=200):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def hung(self):
        return mode == "hang_after" and answered >= int(value)

    def do_GET(self):
        if self.hung():
            threading.Event().wait(60)
        if self.path == "/health":
            self.reply("{}")
        elif self.path == "/version":
            self.reply('{"version": "9.9.9"}')
        elif self.path == "/metrics":
            lines = ["vllm:num_requests_running 0.0", f"vllm:generation_tokens_total {2.0 * answered}"]
            if arm.endswith("+"):
                lines += [
                    f"vllm:spec_decode_num_drafts_total {float(drafts)}",
                    f"vllm:spec_decode_num_draft_tokens_total {4.0 * drafts}",
                    f"vllm:spec_decode_num_accepted_tokens_total {3.0 * drafts}",
                ]
            self.reply("\n".join(lines) + "\n")
        else:
            self.reply('{"data": [{"id": "model"}]}')

    def do_POST(self):
        global answered, drafts
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            answered += 1
            drafts += 1
        if mode == "kill_after" and answered >= int(value):
            print("RuntimeError: the fake engine died", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hung():
            threading.Event().wait(60)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        choice = {"index": 0, "delta": {"content": body["messages"][-1]["content"]}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        for data in (json.dumps({"choices": [choice]}), json.dumps({"choices": [], "usage": usage}), "[DONE]"):
            self.wfile.write(f"data: {data}\n\n".encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", port), Handler).serve_forever()
