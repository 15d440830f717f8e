"""The server of the double of the Hugging Face Hub, with faults; `hub_double` starts it and holds it.

It holds model repositories in memory: commits, regular and LFS files, and Xet files that the real hf-xet keeps in a
folder. Routes and headers are those that huggingface_hub 1.31 to 2.4 asks for; any other path gets 404. It never
leaves the loopback, and LFS contents lie on a second port, so that the client sees another origin.

`python tests/support/hub_server.py [FOLDER for Xet]` prints both ports.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
BOMB_BYTES = 100_000_000  # what the body of a gzip bomb inflates to
LFS_ENDINGS = (".safetensors", ".png", ".bin")


# The state of the Hub ------------------------------------------------------------------------------------------------


@dataclass
class Blob:
    """The content of one file; that of a Xet file lies in the Xet folder."""

    size: int
    sha256: str
    git: str = ""
    data: bytes | None = None
    xet: str = ""

    @property
    def large(self) -> bool:
        return not self.git


@dataclass
class State:
    """Everything that the double knows."""

    lock: Any = field(default_factory=threading.RLock)
    repos: dict[str, list[tuple[str, dict[str, Blob]]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    xet: Path | None = None
    hub: str = ""
    storage: str = ""


HUB = State()


def regular(data: bytes) -> Blob:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return Blob(len(data), hashlib.sha256(data).hexdigest(), git, data)


def large(oid: str, size: int) -> Blob:
    return Blob(size, oid, data=HUB.objects.get(oid), xet="" if oid in HUB.objects else xet_hash(oid))


def add_commit(repo: str, changes: dict[str, Blob | None], oid: str = "") -> str:
    """A commit with these files changed, or deleted where None."""
    history = HUB.repos[repo]
    parent, before = history[-1]
    files = {path: blob for path, blob in {**before, **changes}.items() if blob}
    tree = json.dumps([parent, len(history), sorted((path, blob.sha256) for path, blob in files.items())])
    history.append((oid or hashlib.sha1(tree.encode()).hexdigest(), files))
    return history[-1][0]


def create(repo: str) -> None:
    HUB.repos[repo] = [(hashlib.sha1(repo.encode()).hexdigest(), {})]


def xet_hash(sha256: str) -> str:
    """The Xet hash of a file that hf-xet has stored, found in its shards: the client names only the sha256."""
    for shard in (HUB.xet or Path()).glob("xet/xorbs/shards/*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            flags, count = struct.unpack_from("<II", data, at + 32)
            name = "".join(f"{part:016x}" for part in struct.unpack_from("<4Q", data, at))
            at += 48 * (1 + count * (2 if flags >> 31 & 1 else 1))
            if flags >> 30 & 1:
                if "".join(f"{part:016x}" for part in struct.unpack_from("<4Q", data, at)) == sha256:
                    return name
                at += 48
    return ""


# The server ----------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        self.status, self.headers = status, {**headers, **({"X-Error-Code": code} if code else {})}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = ""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.body = self.read_body()
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.fault = ""
        try:
            if self.parts[0] == "_double":
                self.send_json(self.control(self.parts[1], json.loads(self.body)))
                return
            with HUB.lock:
                self.note()
            if self.fault.isdigit():
                raise Refused(int(self.fault))
            if self.fault == "retry-after":
                raise Refused(429, **{"Retry-After": "100000"})
            if self.fault == "hang":
                time.sleep(3600)
            if self.fault in ("cut", "reset") and self.command not in ("GET", "HEAD"):
                self.hang_up()
                return
            self.route()
        except Refused as refused:
            self.send(refused.status, b"{}", **refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def note(self) -> None:
        """Record the request, and find out whether it meets a fault."""
        line = f"{self.command} {self.path}"
        if "agent-harnesses" not in line:  # the client's own, optional request
            HUB.calls.append(line + (" +auth" if self.headers.get("Authorization") else ""))
        for fault in HUB.faults:
            if fault["on"] in line and fault["times"] > 0:
                fault["times"] -= 1
                self.fault = fault["kind"]
                return

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def route(self) -> None:
        match [self.command, *self.parts]:
            case ["POST", "api", "repos", "create"]:
                self.create_repo(**json.loads(self.body))
            case ["POST", "api", "validate-yaml"]:
                self.validate(json.loads(self.body)["content"])
            case ["POST", "api", "models", owner, name, "preupload", "main"]:
                self.preupload(self.repo(owner, name, write=True))
            case ["POST", owner, git, "info", "lfs", "objects", "batch"]:
                self.batch(self.repo(owner, git.removesuffix(".git"), write=True))
            case ["PUT", "lfs", oid]:
                if hashlib.sha256(self.body).hexdigest() != oid:
                    raise Refused(400)
                HUB.objects[oid] = self.body
                self.send(200)
            case ["POST", "lfs", "verify"]:
                self.allowed()
                self.send(200 if json.loads(self.body)["oid"] in HUB.objects else 404)
            case ["GET", "api", "models", owner, name, "xet-write-token" | "xet-read-token", _]:
                self.repo(owner, name, write=self.parts[4].startswith("xet-write"))
                self.xet_token()
            case ["POST", "api", "models", owner, name, "commit", "main"]:
                self.commit(self.repo(owner, name, write=True))
            case ["GET", "api", "models", owner, name, "revision", revision]:
                self.info(self.repo(owner, name), revision)
            case ["GET", "api", "models", owner, name]:
                self.info(self.repo(owner, name), "main")
            case ["GET", "api", "models", owner, name, "tree", revision, *_]:
                self.tree(self.repo(owner, name), revision)
            case ["HEAD" | "GET", owner, name, "resolve", revision, *path]:
                self.resolve(self.repo(owner, name), revision, "/".join(path))
            case ["GET", "lfs", oid]:
                self.send_file(HUB.objects[oid], ETag=f'"{oid}"')
            case _:
                raise Refused(404)

    # Reading

    def repo(self, owner: str, name: str, write: bool = False) -> str:
        if write:
            self.allowed()
        if f"{owner}/{name}" not in HUB.repos:
            raise Refused(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        return f"{owner}/{name}"

    def allowed(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, **{"X-Error-Message": "Invalid username or password."})

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        history = HUB.repos[repo]
        found = [entry for entry in history if entry[0] == revision] or [history[-1]] * (revision == "main")
        if not found:
            raise Refused(404, "RevisionNotFound")
        return found[0]

    def info(self, repo: str, revision: str) -> None:
        commit, files = self.at(repo, revision)
        about = {"id": repo, "sha": commit, "private": repo in HUB.private}
        self.send_json({**about, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, repo: str, revision: str) -> None:
        entries = []
        for path, blob in self.at(repo, revision)[1].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.git or "0" * 40}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
            entries.append(entry | ({"xetHash": blob.xet} if blob.xet else {}))
        self.send_json(entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit, files = self.at(repo, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise Refused(404, "EntryNotFound", **headers)
        blob = files[path]
        headers["ETag"] = f'"{blob.git or blob.sha256}"'
        if blob.large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(blob.size)}
        if blob.xet:
            token = f"{HUB.hub}/api/models/{repo}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{token}>; rel="xet-auth"'}
        match self.fault:
            case "no-commit":
                del headers["X-Repo-Commit"]
            case "no-etag":
                headers = {key: value for key, value in headers.items() if "etag" not in key.lower()}
            case "other-etag":
                headers |= {key: f'"{"9" * 64}"' for key in headers if "etag" in key.lower()}
            case "traversal-etag":
                headers |= {key: '"../../../outside"' for key in headers if "etag" in key.lower()}
        if blob.large:
            self.send(302, Location=f"{HUB.storage}/lfs/{blob.sha256}?name={path}", **headers)
        else:
            self.send_file(blob.data or b"", **headers)

    # Writing

    def create_repo(
        self, name: str, organization: str | None = None, private: bool = False, visibility: str = "", **_: Any
    ) -> None:
        self.allowed()
        repo = f"{organization or 'someone'}/{name}"
        known = repo in HUB.repos
        if not known:
            create(repo)
            if private or visibility == "private":  # what older and newer clients send
                HUB.private.add(repo)
        self.send_json({"url": f"{HUB.hub}/{repo}"}, status=409 if known else 200)

    def validate(self, content: str) -> None:
        fine = content.startswith("---\n") and "\n---\n" in content
        errors = [] if fine else [{"message": "no metadata block"}]
        self.send_json({"errors": errors, "warnings": []}, status=200 if fine else 400)

    def preupload(self, repo: str) -> None:
        present = self.at(repo, "main")[1]
        files = []
        for file in json.loads(self.body)["files"]:
            blob = present.get(file["path"])
            mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
            oid = (blob.git or blob.sha256) if blob else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": files})

    def batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in HUB.objects:
                upload = {"href": f"{HUB.storage}/lfs/{item['oid']}", "header": {}}
                item["actions"] = {"upload": upload, "verify": {"href": f"{HUB.hub}/lfs/verify"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def xet_token(self) -> None:
        if HUB.xet is None:
            raise Refused(404)
        values = {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": f"local://{HUB.xet}"}
        headers = ("X-Xet-Access-Token", "X-Xet-Token-Expiration", "X-Xet-Cas-Url")
        self.send_json(values, **dict(zip(headers, map(str, values.values()), strict=True)))

    def commit(self, repo: str) -> None:
        changes: dict[str, Blob | None] = {}
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, HUB.repos[repo][-1][0]):
                raise Refused(412)
            if key == "file":
                changes[value["path"]] = regular(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                blob = changes[value["path"]] = large(value["oid"], value["size"])
                if blob.data is None and not blob.xet:
                    raise Refused(400)
            elif key == "deletedFile":
                changes[value["path"]] = None
        with HUB.lock:
            oid = add_commit(repo, changes)
        self.send_json({"commitOid": oid, "commitUrl": f"{HUB.hub}/{repo}/commit/{oid}"})

    # Control

    def control(self, what: str, values: dict[str, Any]) -> Any:
        with HUB.lock:
            if what == "fault":
                HUB.faults = [] if values["kind"] == "ok" else [*HUB.faults, values]
            elif what == "calls":
                calls, HUB.calls = HUB.calls, []
                return calls
            elif what == "commits":
                return [commit for commit, _ in HUB.repos.get(values["repo"], [])[1:]]
            elif what == "files":
                return {path: blob.sha256 for path, blob in self.at(values["repo"], values["commit"])[1].items()}
            elif what == "commit":
                if values["repo"] not in HUB.repos:
                    create(values["repo"])
                files: dict[str, Blob | None] = {}
                for path, text in values["files"].items():
                    blob = regular(base64.b64decode(text))
                    if path.endswith(LFS_ENDINGS):
                        HUB.objects[blob.sha256] = blob.data or b""
                        blob = large(blob.sha256, blob.size)
                    files[path] = blob
                return add_commit(values["repo"], files, values["oid"])
            return None

    # Answering

    def send_file(self, data: bytes, **headers: str) -> None:
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        status, half = 206 if asked else 200, len(data) // 2
        if self.command == "HEAD":
            self.send(status, data, **headers)
        elif self.fault in ("cut", "reset"):
            self.begin(status, len(data) - start, headers)
            self.wfile.write(data[start:half])
            self.hang_up()
        elif self.fault == "drip":
            self.begin(status, len(data) - start, headers)
            for byte in data[start:]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif self.fault == "gzip-bomb":
            self.send(status, gzip.compress(bytes(BOMB_BYTES)), **headers, **{"Content-Encoding": "gzip"})
        elif self.fault == "slow":
            self.begin(status, len(data) - start, headers)
            for at in range(start, len(data), max(1, len(data) // 20)):
                self.wfile.write(data[at : min(at + max(1, len(data) // 20), len(data))])
                time.sleep(0.05)
        elif self.fault == "flip":
            self.send(status, data[start:-8] + bytes(byte ^ 255 for byte in data[-8:]), **headers)
        else:
            self.send(status, data[start:half] if self.fault == "short" else data[start:], **headers)

    def send_json(self, value: Any, status: int = 200, **headers: str) -> None:
        if self.fault == "lost":
            self.hang_up()
            return
        self.send(status, json.dumps(value).encode(), **{"Content-Type": "application/json", **headers})

    def send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.begin(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def hang_up(self) -> None:
        """Close the connection in the middle: politely, or by a reset."""
        self.close_connection = True
        if self.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handle_error(*args)  # the client hung up, or the double did


def serve(xet: str = "") -> None:
    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    HUB.hub, HUB.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    HUB.xet = Path(xet) if xet else None
    print(*(server.server_address[1] for server in servers), flush=True)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the process that started this one is gone, however it ended


if __name__ == "__main__":
    serve(*sys.argv[1:])
