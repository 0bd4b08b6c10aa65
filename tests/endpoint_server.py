"""A small HTTP server in a thread that stands for an endpoint of the OpenAI kind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: what a reply is: (status, body, headers), or a text, which is answered as the protocol says
Reply = tuple[int, bytes, dict[str, str]] | str


@dataclass
class Served:
    """What was asked, and where."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [r["messages"][0]["content"] for r in self.requests]


@contextmanager
def served(reply: Callable[[str, int], Reply]) -> Iterator[Served]:
    """Serve `reply(prompt, number of the request)` while the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(about.requests)
                about.requests.append(body)
                about.keys.append(self.headers.get("Authorization"))
                said = reply(body["messages"][0]["content"], number)
            if isinstance(said, str):
                said = (200, completion(said), {})
            status, raw, headers = said
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    about = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield about
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str) -> bytes:
    """A reply as the protocol has it."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
