"""A hub on loopback: the few endpoints that huggingface_hub calls to make a repository, to upload a folder, and to download."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_token_of_the_test"


class Hub(ThreadingHTTPServer):
    """What it was sent stays in `repositories`: by name, whether it is private, and its files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.commits: list[str] = []  # their messages
        self.tokens: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def known(self) -> bool:
        """Whether the token is that of the test; answers with 401 otherwise, as the hub does."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.tokens.add(token)
        if token != TOKEN:
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        return token == TOKEN

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:  # noqa: PLR0911
        body = self.body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.known():
            return None
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name.startswith("others/"):
                return self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
            if name in self.server.repositories:
                return self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            visibility = asked.get("visibility")
            private = visibility == "private" if visibility else bool(asked.get("private"))
            self.server.repositories[name] = {"private": private, "files": {}}
            return self.answer({"url": f"{self.server.url}/{name}"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"} for f in files
            ]
            return self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            put = {o["oid"]: {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}} for o in objects}
            found = [{"oid": o["oid"], "size": o["size"], "actions": put[o["oid"]]} for o in objects]
            return self.answer({"transfer": "basic", "objects": found})
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            files = self.server.repositories[name]["files"]
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    self.server.commits.append(value["summary"])
                elif entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            return self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})
        return self.answer({"error": f"no such endpoint: {path}"}, 404)

    def do_PUT(self) -> None:
        body = self.body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer({"error": "not what was said"}, 400)
        self.server.large[oid] = body
        return self.answer()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            if not self.known():
                return None
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            if name not in self.server.repositories:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            found = self.server.repositories[name]
            return self.answer({"id": name, "private": found["private"], "sha": "0" * 40, "siblings": [], "tags": []})
        name, mark, file = path.strip("/").partition("/resolve/main/")
        files = self.server.repositories.get(name, {}).get("files", {})
        if not mark or file not in files:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
        etag = {"ETag": f'"{hashlib.sha256(files[file]).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        return self.answer(files[file], headers=etag)

    do_HEAD = do_GET


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers inside the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
