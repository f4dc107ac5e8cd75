"""A mirror of images in a rack, as any web server is one. While the file LIE exists it changes one byte of all it sends.

Usage: mirror.py ADDRESS PORT FOLDER LIE. Standard library only.
"""

from __future__ import annotations

import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PART = 256 * 1024


class Handler(BaseHTTPRequestHandler):
    """GET /images/<sha256>, whole or from `Range: bytes=N-`."""

    protocol_version = "HTTP/1.1"
    folder, lie = Path(), Path()

    def do_GET(self) -> None:
        found = re.fullmatch(r"/images/([0-9a-f]{64})", self.path)
        path = self.folder / found.group(1) if found else None
        if path is None or not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked else 0
        if start >= size:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        lies = self.lie.exists()
        with path.open("rb") as file:
            file.seek(start)
            while part := file.read(_PART):
                at = size // 2 - (file.tell() - len(part))
                if lies and 0 <= at < len(part):
                    part = part[:at] + bytes((part[at] ^ 1,)) + part[at + 1 :]
                self.wfile.write(part)
        print(f"{'lied' if lies else 'sent'} {path.name[:12]} from {start}", flush=True)  # noqa: T201 -- its log

    def log_message(self, *_: object) -> None:
        """Its own lines say more."""


def main(address: str, port: str, folder: str, lie: str) -> None:
    Handler.folder, Handler.lie = Path(folder), Path(lie)
    with ThreadingHTTPServer((address, int(port)), Handler) as server:
        server.daemon_threads = True
        server.serve_forever()


if __name__ == "__main__":
    os.umask(0o077)
    main(*sys.argv[1:])
