"""A bucket without Google: what names gs://BUCKET lands in TensorFlow's in-memory file system (ram://BUCKET).

Three readers and writers meet there, each by the interface that it has for the real thing: `etils.epath` through
`tf.io.gfile`; clu's event files; and Orbax through tensorstore's own client of Google Cloud Storage, which speaks HTTP
to the server below (JSON API: upload, read, list, delete, with generations as preconditions). What a bucket does
otherwise (credentials, latency, failures, eventual limits of rate) is not here.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from clu import metric_writers
from etils.epath import backend, gpath

from vivit_jax.data.host_tf import tf


def _there(value: Any) -> Any:
    return value.replace("gs://", "ram://") if isinstance(value, str) else value


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return [_back(item) for item in value]
    return value.replace("ram://", "gs://") if isinstance(value, str) else value


class _Gfile:
    """`tf.io.gfile` for names that begin with gs://."""

    def rename(self, source: str, target: str, overwrite: bool = False) -> None:
        """Of a folder too, object by object, as the file system of gs:// does it and that of ram:// does not."""
        source, target = _there(source), _there(target)
        if not tf.io.gfile.isdir(source):
            tf.io.gfile.rename(source, target, overwrite)
            return
        for folder, _, files in list(tf.io.gfile.walk(source)):
            place = target + folder.removeprefix(source)
            tf.io.gfile.makedirs(place)
            for name in files:
                tf.io.gfile.rename(f"{folder}/{name}", f"{place}/{name}", overwrite)
        tf.io.gfile.rmtree(source)

    def __getattr__(self, name: str) -> Any:
        real = getattr(tf.io.gfile, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            written = args[0] if name == "GFile" and args[1].startswith("w") else args[1] if name == "copy" else None
            if written and tf.io.gfile.exists(_there(written)) and (name == "GFile" or kwargs.get("overwrite")):
                tf.io.gfile.remove(_there(written))  # ram:// would write behind what is there
            found = real(*map(_there, args), **{key: _there(value) for key, value in kwargs.items()})
            if name == "walk":
                return ((_back(folder), folders, files) for folder, folders, files in found)
            return _back(found)

        return call


class _TfBackend(backend._TfBackend):
    gfile = _Gfile()


@contextlib.contextmanager
def gs() -> Iterator[_Server]:
    """gs:// is in memory, for this process; yields the server, which counts what it is asked."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    writer = metric_writers.SummaryWriter
    with pytest.MonkeyPatch.context() as patch:
        fake = _TfBackend()
        patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", fake)
        patch.setattr(gpath.backend_lib, "tf_backend", fake)
        patch.setattr(gpath, "_GCS_BACKENDS", gpath._GCS_BACKENDS | {fake})
        patch.setattr(metric_writers, "SummaryWriter", lambda logdir: writer(_there(logdir)))
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.lock = threading.Lock()
        self.generations: dict[str, int] = {}
        self.requests: dict[str, int] = {}

    def generation(self, file: str) -> int:
        """Of an object: 0 where there is none. What was written past the server has one of its own."""
        return self.generations.setdefault(file, 1) if tf.io.gfile.exists(file) else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        del args

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[str, str | None, dict[str, str]]:
        """(bucket, object or None, parameters)."""
        url = urllib.parse.urlsplit(self.path)
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
        assert found, self.path
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        name = parameters.get("name") or (urllib.parse.unquote(found[2]) if found[2] else None)
        with self.server.lock:
            self.server.requests[self.command] = self.server.requests.get(self.command, 0) + 1
        return found[1], name, parameters

    def _described(self, file: str, bucket: str) -> dict[str, Any]:
        name = file.removeprefix(f"ram://{bucket}/")
        size = str(tf.io.gfile.stat(file).length)
        return {"name": name, "bucket": bucket, "generation": str(self.server.generation(file)), "size": size}

    def _refused(self, file: str, parameters: dict[str, str]) -> bool:
        wanted, now = parameters.get("ifGenerationMatch"), self.server.generation(file)
        if wanted is not None and int(wanted) != now:
            self._answer(412)
            return True
        if (known := parameters.get("ifGenerationNotMatch")) is not None and int(known) == now:
            self._answer(304)
            return True
        return False

    def do_POST(self) -> None:
        bucket, name, parameters = self._asked()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        file = f"ram://{bucket}/{name}"
        with self.server.lock:
            if self._refused(file, parameters):
                return
            now = self.server.generation(file)
            tf.io.gfile.makedirs(file.rpartition("/")[0])
            if now:
                tf.io.gfile.remove(file)
            with tf.io.gfile.GFile(file, "wb") as out:
                out.write(data)
            self.server.generations[file] = now + 1
            self._answer(200, self._described(file, bucket))

    def do_GET(self) -> None:
        bucket, name, parameters = self._asked()
        if name is None and not urllib.parse.urlsplit(self.path).path.endswith("/o"):
            self._answer(200, {"kind": "storage#bucket", "id": bucket, "name": bucket}, Content_Type="application/json")
            return
        with self.server.lock:
            if name is None:
                prefix = parameters.get("prefix", "")
                folder = f"ram://{bucket}/{prefix.rpartition('/')[0]}".rstrip("/")
                files = [f"{where}/{file}" for where, _, names in tf.io.gfile.walk(folder) for file in names]
                items = [self._described(file.replace("//", "/").replace("ram:/", "ram://"), bucket) for file in files]
                items = sorted((i for i in items if i["name"].startswith(prefix)), key=lambda i: i["name"])
                self._answer(200, {"kind": "storage#objects", "items": items}, Content_Type="application/json")
                return
            file = f"ram://{bucket}/{name}"
            if not tf.io.gfile.exists(file) or tf.io.gfile.isdir(file):
                self._answer(404)
                return
            if self._refused(file, parameters):
                return
            if parameters.get("alt") != "media":
                self._answer(200, self._described(file, bucket))
                return
            with tf.io.gfile.GFile(file, "rb") as stored:
                data = stored.read()
            generation, total = str(self.server.generation(file)), len(data)
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(asked[1]), min(int(asked[2] or total - 1), total - 1)
                where = f"bytes {first}-{last}/{total}"
                self._answer(206, data[first : last + 1], Content_Range=where, x_goog_generation=generation)
            elif asked := re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range", "")):
                first = max(0, total - int(asked[1]))
                where = f"bytes {first}-{total - 1}/{total}"
                self._answer(206, data[first:], Content_Range=where, x_goog_generation=generation)
            else:
                self._answer(200, data, x_goog_generation=generation)

    def do_DELETE(self) -> None:
        bucket, name, parameters = self._asked()
        file = f"ram://{bucket}/{name}"
        with self.server.lock:
            if not tf.io.gfile.exists(file):
                self._answer(404)
                return
            if not self._refused(file, parameters):
                tf.io.gfile.remove(file)
                self.server.generations.pop(file, None)
                self._answer(204)
