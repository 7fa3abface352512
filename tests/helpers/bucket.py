"""A fake bucket: gs://BUCKET is stored in TensorFlow's in-memory file system, ram://BUCKET.

It is accessed through the three interfaces of the real one: `etils.epath` through `tf.io.gfile`; clu's event files; and
Orbax through tensorstore's client of Google Cloud Storage, which speaks HTTP to the server below (JSON API: upload,
read, list, delete, with generations as preconditions). Credentials, latency, failures and rate limits are not modelled.
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


def _to_ram(value: Any) -> Any:
    return value.replace("gs://", "ram://") if isinstance(value, str) else value


def _to_gs(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_gs(item) for item in value]
    return value.replace("ram://", "gs://") if isinstance(value, str) else value


class _Gfile:
    """`tf.io.gfile` for names that begin with gs://."""

    def rename(self, source: str, target: str, overwrite: bool = False) -> None:
        """Renames a file, or a folder object by object: gs:// supports that, ram:// does not."""
        source, target = _to_ram(source), _to_ram(target)
        if not tf.io.gfile.isdir(source):
            tf.io.gfile.rename(source, target, overwrite)
            return
        for folder, _, files in list(tf.io.gfile.walk(source)):
            new_folder = target + folder.removeprefix(source)
            tf.io.gfile.makedirs(new_folder)
            for name in files:
                tf.io.gfile.rename(f"{folder}/{name}", f"{new_folder}/{name}", overwrite)
        tf.io.gfile.rmtree(source)

    def __getattr__(self, name: str) -> Any:
        real = getattr(tf.io.gfile, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            target = args[0] if name == "GFile" and args[1].startswith("w") else args[1] if name == "copy" else None
            if target and tf.io.gfile.exists(_to_ram(target)) and (name == "GFile" or kwargs.get("overwrite")):
                tf.io.gfile.remove(_to_ram(target))  # ram:// would append to the existing file
            result = real(*map(_to_ram, args), **{key: _to_ram(value) for key, value in kwargs.items()})
            if name == "walk":
                return ((_to_gs(folder), folders, files) for folder, folders, files in result)
            return _to_gs(result)

        return call


class _TfBackend(backend._TfBackend):
    gfile = _Gfile()


@contextlib.contextmanager
def gs() -> Iterator[_Server]:
    """Redirects gs:// to memory for this process; yields the server, which counts its requests."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    writer, url = metric_writers.SummaryWriter, f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        fake = _TfBackend()
        patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", fake)
        patch.setattr(gpath.backend_lib, "tf_backend", fake)
        patch.setattr(gpath, "_GCS_BACKENDS", gpath._GCS_BACKENDS | {fake})
        patch.setattr(metric_writers, "SummaryWriter", lambda logdir: writer(_to_ram(logdir)))
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("STORAGE_EMULATOR_HOST", url)
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
        """Returns the generation of an object, 0 if it does not exist."""
        return self.generations.setdefault(file, 1) if tf.io.gfile.exists(file) else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        del args

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), headers | {"Content_Type": "application/json"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _request(self) -> tuple[str, str | None, dict[str, str]]:
        """Returns (bucket, object or None, parameters)."""
        url = urllib.parse.urlsplit(self.path)
        match = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
        assert match, self.path
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        name = parameters.get("name") or (urllib.parse.unquote(match[2]) if match[2] else None)
        with self.server.lock:
            self.server.requests[self.command] = self.server.requests.get(self.command, 0) + 1
        return match[1], name, parameters

    def _description(self, file: str, bucket: str) -> dict[str, Any]:
        name = file.removeprefix(f"ram://{bucket}/")
        size = str(tf.io.gfile.stat(file).length)
        return {"name": name, "bucket": bucket, "generation": str(self.server.generation(file)), "size": size}

    def _precondition_failed(self, file: str, parameters: dict[str, str]) -> bool:
        generation = str(self.server.generation(file))
        if parameters.get("ifGenerationMatch", generation) != generation:
            self._answer(412)
        elif parameters.get("ifGenerationNotMatch") == generation:
            self._answer(304)
        else:
            return False
        return True

    def do_POST(self) -> None:
        bucket, name, parameters = self._request()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        file = f"ram://{bucket}/{name}"
        with self.server.lock:
            if self._precondition_failed(file, parameters):
                return
            generation = self.server.generation(file)
            tf.io.gfile.makedirs(file.rpartition("/")[0])
            if generation:
                tf.io.gfile.remove(file)
            with tf.io.gfile.GFile(file, "wb") as stored:
                stored.write(data)
            self.server.generations[file] = generation + 1
            self._answer(200, self._description(file, bucket))

    def do_GET(self) -> None:
        bucket, name, parameters = self._request()
        if name is None and not urllib.parse.urlsplit(self.path).path.endswith("/o"):
            self._answer(200, {"kind": "storage#bucket", "id": bucket, "name": bucket})
            return
        file = f"ram://{bucket}/{name}"
        with self.server.lock:
            if name is None:
                self._list(bucket, parameters.get("prefix", ""))
            elif not tf.io.gfile.exists(file) or tf.io.gfile.isdir(file):
                self._answer(404)
            elif not self._precondition_failed(file, parameters):
                if parameters.get("alt") == "media":
                    self._send(file)
                else:
                    self._answer(200, self._description(file, bucket))

    def _list(self, bucket: str, prefix: str) -> None:
        folder = f"ram://{bucket}/{prefix.rpartition('/')[0]}".rstrip("/")
        files = [f"{parent}/{file}" for parent, _, names in tf.io.gfile.walk(folder) for file in names]
        items = [self._description(file.replace("//", "/").replace("ram:/", "ram://"), bucket) for file in files]
        items = sorted((item for item in items if item["name"].startswith(prefix)), key=lambda item: item["name"])
        self._answer(200, {"kind": "storage#objects", "items": items})

    def _send(self, file: str) -> None:
        """Sends an object, or the requested range of its bytes."""
        with tf.io.gfile.GFile(file, "rb") as stored:
            data = stored.read()
        generation, total = str(self.server.generation(file)), len(data)
        requested = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not requested:
            self._answer(200, data, x_goog_generation=generation)
            return
        if requested[1]:
            first, last = int(requested[1]), min(int(requested[2] or total - 1), total - 1)
        else:
            first, last = max(0, total - int(requested[2])), total - 1
        content_range = f"bytes {first}-{last}/{total}"
        self._answer(206, data[first : last + 1], Content_Range=content_range, x_goog_generation=generation)

    def do_DELETE(self) -> None:
        bucket, name, parameters = self._request()
        file = f"ram://{bucket}/{name}"
        with self.server.lock:
            if not tf.io.gfile.exists(file):
                self._answer(404)
            elif not self._precondition_failed(file, parameters):
                tf.io.gfile.remove(file)
                self.server.generations.pop(file, None)
                self._answer(204)
