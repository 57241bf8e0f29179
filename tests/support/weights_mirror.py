"""A server of weights on loopback, and the registry that names it."""

from __future__ import annotations

import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NEEDS_MICROSAM = pytest.mark.skipif(importlib.util.find_spec("micro_sam") is None, reason="micro_sam is not installed")

ENCODER, DECODER = b"encoder" * 500_000, b"decoder" * 1000

CONTENTS = {"vit_b_lm": ENCODER, "vit_b_lm_decoder": DECODER}


class Mirror:
    """A server on loopback and the registry that names it; what it answers can be changed.

    Attributes:
        contents: What it sends for each file.
        fault: None, or "404", "cut" (closes the connection half way), "slow" (sends half, then nothing).
        asked: Files that it was asked for, in order.
    """

    def __init__(self, folder: Path, contents: dict[str, bytes]) -> None:
        self.contents, self.fault, self.asked = dict(contents), None, []
        self.let_go = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.file = folder / "registry.txt"
        self.register(contents)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def register(self, contents: dict[str, bytes]) -> None:
        xxhash = pytest.importorskip("xxhash")
        lines = [f"{name} xxh128:{xxhash.xxh128_hexdigest(data)} {self.url}/{name}" for name, data in contents.items()]
        self.file.write_text("# a mirror\n" + "\n".join(lines) + "\n")

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.strip("/")
        self.asked.append(name)
        if self.fault == "404":
            request.send_error(404)
            return
        data = self.contents[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data if self.fault is None else data[: len(data) // 2])
        if self.fault == "slow":
            self.let_go.wait(60)

    def stop(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()
