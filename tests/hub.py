"""A server that speaks as much of the Hugging Face Hub's protocol as files and commits need."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any


class Hub:
    """Repositories in memory: the commits of each, and what its branches point to."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, dict[str, str]] = {}

    def create(self, repo: str) -> bool:
        """Whether the repository is new."""
        is_new = repo not in self.branches
        self.branches.setdefault(repo, {"main": self._commit({})})
        return is_new

    def push(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        """A commit that adds files to those of a branch."""
        branches = self.branches[repo]
        branches[branch] = self._commit({**self.commits[branches[branch]], **files})
        return branches[branch]

    def file(self, repo: str, revision: str, name: str) -> tuple[str, bytes] | None:
        """The commit that a revision stands for, and a file in it."""
        commit = self.branches.get(repo, {}).get(revision, revision)
        files = self.commits.get(commit, {})
        return (commit, files[name]) if name in files else None

    def _commit(self, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr((len(self.commits), files)).encode()).hexdigest()  # noqa: S324
        self.commits[commit] = files
        return commit


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that listens on this machine while the context lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            status = 200 if self.hub.create(repo) else 409
            self._answer(status, {"url": f"{self.hub.endpoint}/{repo}", "error": "it exists"})
            return
        _, _, user, name, what, revision = parts
        repo = f"{user}/{name}"
        if revision not in self.hub.branches[repo]:
            headers = {"X-Error-Code": "RevisionNotFound"}
            self._answer(404, {"error": "no such branch"}, headers)
        elif what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            assert what == "commit", self.path
            lines = map(json.loads, body.splitlines())
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.hub.push(repo, revision, files)
            url = f"{self.hub.endpoint}/{repo}/commit/{commit}"
            self._answer(200, {"commitOid": commit, "commitUrl": url})

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_GET(self) -> None:
        self._resolve(with_body=True)

    def _resolve(self, with_body: bool) -> None:
        user, name, what, revision, *path = self.path.strip("/").split("/")
        found = self.hub.file(f"{user}/{name}", revision, "/".join(path))
        if what != "resolve" or found is None:
            self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
            return
        commit, content = found
        etag = hashlib.sha1(content).hexdigest()  # noqa: S324
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        self._send(200, content if with_body else b"", {**headers, "Content-Length": len(content)})

    def _answer(self, status: int, value: Any, headers: dict[str, Any] | None = None) -> None:
        content = json.dumps(value).encode()
        length = {"Content-Length": len(content), "Content-Type": "application/json"}
        self._send(
            status, b"" if self.command == "HEAD" else content, {**length, **(headers or {})}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""
