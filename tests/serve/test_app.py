"""Answers, limits and refusals of the server, and uploads that are hostile."""

import asyncio
import base64
import concurrent.futures
import io
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.conftest import REPOSITORY
from tests.helpers.videos import VARIABLE, read_video, write_video
from tests.serve.conftest import LABELS

pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from fastapi.testclient import TestClient  # noqa: E402

from vivit_jax.predict import timeline  # noqa: E402
from vivit_jax.serve import decode  # noqa: E402
from vivit_jax.serve.app import create_app  # noqa: E402
from vivit_jax.serve.decode import Limits  # noqa: E402


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder for temporary files, which must be empty in the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def client(model, scratch):
    return TestClient(create_app({"first": model, "second": model}, Limits(max_mb=0.5, max_seconds=10)))


def decoded(uri):
    """The frames of an animated WebP."""
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
    return np.stack([frame.convert("RGB") for frame in ImageSequence.Iterator(picture)])


def upload(client, content: bytes, name: str = "clip.mp4", **query):
    return client.post("/api/predict", files={"file": (name, content)}, params=query)


def test_answer_is_that_of_the_file(client, model, video):
    answer = upload(
        client, video.read_bytes(), "../../x<script>.mp4", top=3, clip=True, relevance=True, timeline=True
    ).json()
    expected = model(video, 3)
    assert answer["model"] == "first"
    assert answer["file"] == "../../x<script>.mp4"
    assert answer["video"] == {"frames": 50, "fps": 25, "seconds": 2, "width": 64, "height": 64}
    assert [tuple(pair) for pair in answer["labels"]["label"]] == expected.ranked["label"]
    frames = [decoded(answer[part]) for part in ("clip", "relevance")]
    assert np.abs(frames[0] - expected.clips[0].astype(float)).mean() < 20  # WebP is lossy
    np.testing.assert_allclose(answer["moments"], expected.relevance[0].sum((1, 2)), rtol=1e-4)
    heat = (frames[1] - 0.4 * frames[0]).reshape(2, 2, 2, 4, 3, 4, 3).mean((1, 3, 5, 6))  # the mean of each token
    assert np.unravel_index(heat.argmax(), heat.shape) == np.unravel_index(expected.relevance[0].argmax(), heat.shape)
    merged = list(timeline.segments(timeline.windows(model, video)))
    assert [each["label"] for each in answer["timeline"]] == [each.label for each in merged]
    assert upload(client, video.read_bytes(), model="second").json()["model"] == "second"
    assert upload(client, video.read_bytes(), model="../third").status_code == 404


def test_description_health_and_metrics(client, video):
    upload(client, video.read_bytes())
    upload(client, b"text")
    assert upload(client, bytes(1 << 20)).json() == {"detail": "larger than 0.5 MB (--max_mb)"}
    assert client.get("/healthz").json() == {"status": "ok"}
    described = client.get("/api/models").json()
    assert described["models"] == {name: {"label": LABELS} for name in ("first", "second")}
    assert described["limits"]["max_mb"] == 0.5
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/api/predict", "/api/models", "/healthz"}
    assert "multipart/form-data" in schema["paths"]["/api/predict"]["post"]["requestBody"]["content"]
    metrics = client.get("/metrics").text
    for line in (
        'vivit_requests_total{code="200"} 1.0',
        'vivit_requests_total{code="422"} 1.0',
        "vivit_active_requests 0",
    ):
        assert line in metrics
    assert 'vivit_seconds_count{stage="model"} 1.0' in metrics


def test_page_fetches_nothing_from_elsewhere(client):
    page, script = client.get("/").text, client.get("/page.js").text
    assert "https:" not in (page + script).replace("or https.", "")
    assert "http:" not in page + script
    assert re.search(r"Content-Security-Policy.*default-src 'none'; script-src 'self';", page)
    assert "innerHTML" not in script
    assert client.get("/../app.py").status_code == client.get("/%2e%2e/app.py").status_code == 404


def test_large_upload_is_refused_before_its_end(model, scratch):
    app, received = create_app({"model": model}, Limits(max_mb=0.5)), 0

    async def receive():
        nonlocal received
        begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        received += 1 << 16
        return {"type": "http.request", "body": bytes(1 << 16) if received > 1 << 16 else begin, "more_body": True}

    def status(*headers):
        sent = []
        scope = {"type": "http", "method": "POST", "path": "/api/predict", "query_string": b"", "root_path": ""}
        scope["headers"] = [(b"content-type", b"multipart/form-data; boundary=x"), *headers]

        async def send(message):
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        return sent[0]["status"]

    assert status() == 413  # an upload without end, of unknown length
    assert received <= 2**19 + 2**17
    received = 0
    assert (status((b"content-length", str(1 << 40).encode())), received) == (413, 0)


def patched_length(path):
    """An MP4 of 20 frames whose header announces hours."""
    content = bytearray(write_video(path).read_bytes())
    for box, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        place = content.index(box) + at
        content[place : place + 4] = (0x7FFFFFFF).to_bytes(4, "big")
    return bytes(content)


def test_announced_length_is_not_believed(client, tmp_path):
    answer = upload(client, patched_length(tmp_path / "clip.mp4"))
    assert (answer.status_code, answer.json()["video"]["frames"]) == (200, 20)


HOSTILE = {
    "text": (lambda p: b"hello, world\n" * 99, "not a video"),
    "empty": (lambda p: b"", "empty"),
    "truncated": (lambda p: write_video(p).read_bytes()[:-900], "not a video|cut short"),
    "too long": (lambda p: write_video(p, stamps=[1000 * i for i in range(20)]).read_bytes(), "longer than 10 s"),
    "header of many pixels": (
        lambda p: b"YUV4MPEG2 W60000 H60000 F25:1 C420jpeg\nFRAME\n" + bytes(99),
        "pixels|not a video",
    ),
    "concat": (lambda p: f"ffconcat version 1.0\nfile {p.name}\n".encode(), "a list of other files"),
    "concat, absolute": (lambda p: f"ffconcat version 1.0\nfile '{p}'\n".encode(), "a list of other files"),
    "hls": (
        lambda p: f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{p}\n#EXT-X-ENDLIST\n".encode(),
        "not a video",
    ),
    "sdp": (
        lambda p: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "a list of other files|not a video",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_upload_is_refused_with_a_reason(client, tmp_path, name):
    """Those that name another file name a pipe, which would block whoever opened it."""
    make, reason = HOSTILE[name]
    other = tmp_path / "other.mp4"
    if name.startswith(("concat", "hls")):
        os.mkfifo(other)
    answer = upload(client, make(other), f"../../{name}<script>.mp4")
    assert answer.status_code == 422, answer.text
    assert re.search(reason, answer.json()["detail"]), answer.text
    assert str(tmp_path) not in answer.text


def test_decoding_is_bounded_in_time_and_memory(model, scratch, video, tmp_path):
    def answer(content=None, **limits):
        client = TestClient(create_app({"model": model}, Limits(**limits)))
        return upload(client, content or video.read_bytes())

    slow = answer(decode_seconds=0.1)
    assert (slow.status_code, slow.json()["detail"]) == (504, "not decoded within 0.1 s (--decode_seconds)")
    large = write_video(tmp_path / "x.mkv", [np.zeros((5000, 5000, 3), np.uint8)], codec="ffv1").read_bytes()
    many = answer(large)
    assert (many.status_code, many.json()["detail"]) == (422, "5000 x 5000 pixels; a frame may have 9,437,184")
    hungry = answer(large, max_pixels=1 << 26, decode_mb=280)
    assert hungry.status_code == 422
    assert re.search("memory|280 MB", hungry.json()["detail"])
    many = answer(max_frames=3)
    assert (many.status_code, many.json()["detail"]) == (422, "more than 3 frames (--max_frames)")
    thin = answer(write_video(tmp_path / "thin.mkv", [np.zeros((2, 1000, 3), np.uint8)] * 2, codec="ffv1").read_bytes())
    assert thin.status_code == 422, "enlarged until 2 pixels are the model's height, it would take gigabytes"
    assert thin.json()["detail"] == "one side of its frames is over 32 times as long as the other"
    full = answer(frames_mb=0)
    assert (full.status_code, full.json()["detail"]) == (422, "its frames take more than 0 MB (--frames_mb)")


def test_killed_decoder_is_a_refusal(client, video, monkeypatch):
    monkeypatch.setattr(decode, "_BOOT", "import os; os.kill(os.getpid(), 9)")
    answer = upload(client, video.read_bytes())
    assert answer.status_code == 422
    assert "ended with status -9" in answer.json()["detail"]


@pytest.mark.parametrize("stamps", [None, VARIABLE, [0, 9000]], ids=["constant", "variable", "gap"])
def test_frames_are_those_of_the_upload(tmp_path, stamps):
    images = None if stamps is None or len(stamps) == 20 else [np.zeros((48, 64, 3), np.uint8)] * len(stamps)
    original = write_video(tmp_path / "a.mkv", images, stamps=stamps)
    facts = decode.decode(original, tmp_path / "frames", 32, Limits())
    expected, found = read_video(original, short_side=32), read_video(tmp_path / "frames", short_side=32)
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_allclose(found.times, expected.times, atol=1e-5)
    assert (facts["frames"], facts["width"], facts["height"]) == (len(expected.frames), 43, 32)


class Slow:
    """A model whose prediction waits for an event."""

    def __init__(self, model):
        self._model, self.go = model, threading.Event()
        self.preprocessing, self.class_names = model.preprocessing, model.class_names

    def __call__(self, path, top):
        self.go.wait(60)
        return self._model(path, top)


def test_queue_is_bounded(model, serve, scratch, video):
    slow, limits = Slow(model), Limits(parallel=1, queue=2)
    url = serve(create_app({"slow": slow}, limits))
    files = {"file": ("clip.mp4", video.read_bytes())}
    with httpx.Client(base_url=url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.post, "/api/predict", files=files) for _ in range(3)]
        while "vivit_active_requests 3" not in client.get("/metrics").text:
            time.sleep(0.02)
        refused = client.post("/api/predict", files=files)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert client.get("/healthz").status_code == 200
        slow.go.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert client.post("/api/predict", files=files).status_code == 200


def test_slow_upload_is_ended(model, serve, scratch):
    url = serve(create_app({"model": model}, Limits(receive_seconds=0.2)))

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        time.sleep(0.5)
        yield b"x"

    answer = httpx.post(
        f"{url}/api/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 408


@pytest.mark.slow
def test_each_of_many_uploads_is_answered_or_refused(model, serve, scratch, video):
    url = serve(create_app({"model": model}, Limits(queue=6)))
    content = {True: video.read_bytes(), False: b"no video\n" * 99}

    def post(number):
        good = number % 5 > 0
        answer = httpx.post(f"{url}/api/predict", files={"file": ("clip.mp4", content[good])}, timeout=120)
        assert isinstance(answer.json(), dict)
        return good, answer.status_code

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {code for good, code in answers if good} == {200, 429}
    assert {code for good, code in answers if not good} <= {422, 429}
    assert sum(code != 429 for _, code in answers) >= 8
    metrics = httpx.get(f"{url}/metrics").text
    counts = {int(code): float(n) for code, n in re.findall(r'vivit_requests_total{code="(\d+)"} (\S+)', metrics)}
    assert counts == {code: sum(c == code for _, c in answers) for code in counts}
    assert sum(counts.values()) == 50


def test_page_of_another_site_is_refused(client, video):
    files = {"file": ("clip.mp4", video.read_bytes())}
    answer = client.post("/api/predict", files=files, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


def test_limits_that_would_refuse_or_hold_every_request_are_refused():
    for flag in ("--parallel=0", "--max_seconds=0"):
        command = [sys.executable, "-m", "vivit_jax.serve", "--workdir=run", flag]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 2
        assert f"{flag.partition('=')[0]}=0" in done.stderr


@pytest.mark.slow
def test_command_listens_on_loopback(model):
    command = [sys.executable, "-m", "vivit_jax.serve", f"--workdir={model.path}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as server:
        try:
            url = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
            assert len(httpx.get(f"{url}/api/models", timeout=60).json()["models"]) == 1
        finally:
            server.terminate()
