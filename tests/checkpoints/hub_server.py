"""A small hub on loopback: one repository, in the HTTP that huggingface_hub speaks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "tiny-org/tiny-chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`asked`: names of the files that were fetched. `cut`: the file whose transfer breaks off.

    Large files carry their sha256 as the hub's do.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.cut = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def entries(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            oid = hashlib.sha1(data).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(data), "oid": oid}
            if path.suffix == ".safetensors":
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 130}
            found.append(entry)
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/models/{REPO}"
        if path in (f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{COMMIT}", api):
            siblings = [{"rfilename": entry["path"]} for entry in self.server.entries()]
            self._json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith(f"{api}/revision/"):
            self._error("RevisionNotFound")
        elif path.startswith(f"{api}/tree/"):
            self._json(self.server.entries())
        elif path.startswith(f"/{REPO}/resolve/"):
            self._file(path.rsplit("/", 1)[1], body=body)
        elif path.startswith("/api/models/gated/"):
            self._error("GatedRepo", status=403)
        else:
            self._error("RepoNotFound")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: str, status: int = 404) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _file(self, name: str, *, body: bool) -> None:
        entry = next((e for e in self.server.entries() if e["path"] == name), None)
        if entry is None:
            self._error("EntryNotFound")
            return
        data = (self.server.folder / name).read_bytes()
        lfs = entry.get("lfs")
        etag = lfs["sha256"] if isinstance(lfs, dict) else entry["oid"]
        if body:
            self.server.asked.append(name)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body and name == self.server.cut:
            self._send(200, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        self._send(200, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
