"""The page and the REST interface: admission of requests, decoding, the model, metrics."""

import asyncio
import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import prometheus_client
import pydantic
from fastapi import FastAPI, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image

import vivit_jax
from vivit_jax.predict import Predictor
from vivit_jax.predict import timeline as windows
from vivit_jax.report import figures
from vivit_jax.serve import decode
from vivit_jax.serve.decode import Limits

Refusal = pydantic.create_model("Refusal", detail=(str | list[dict[str, Any]], ...))  # a list: of wrong parameters


@dataclasses.dataclass
class Answer:
    """What a model says of an upload."""

    model: str
    file: str  # the name that was sent with it: text, and no path
    video: dict[str, float]  # frames, fps, seconds, width, height; no larger than in the model's records
    labels: dict[str, list[tuple[str, float]]]  # by head, the most probable first, with its probability
    clip: str | None = None  # the first clip as the model sees it: an animated WebP, as a data URI
    relevance: str | None = None  # the same under the relevance of its parts
    moments: list[float] | None = None  # the relevance of each step in time of that clip
    timeline: list[windows.Segment] | None = None  # of at most 32 windows


class _Admission:
    """Middleware that refuses predictions beyond the limits, before or while their upload arrives."""

    def __init__(self, app: Any, limits: Limits, requests: prometheus_client.Counter, active: prometheus_client.Gauge):
        self._app, self._limits, self._requests = app, limits, requests
        self._active, self._usual = 0, 1.0  # requests; seconds that one takes, a moving average
        active.set_function(lambda: self._active)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        app, code, begin, headers = self._app, 500, time.monotonic(), Request(scope).headers

        async def sent(message: Any) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        if headers.get("sec-fetch-site") == "cross-site":
            app = JSONResponse({"detail": "sent by a page of another site"}, 403)
        elif self._active >= self._limits.parallel + self._limits.queue:
            wait = {"Retry-After": str(min(60, math.ceil(self._usual * self._active / self._limits.parallel)))}
            app = JSONResponse({"detail": f"{self._active} requests are waiting; try again later"}, 429, wait)
        self._active += 1
        try:
            await app(scope, self._counted(receive, begin, headers.get("content-length")), sent)
        finally:
            self._active -= 1
            self._requests.labels(code).inc()
            if app is self._app:
                self._usual += 0.2 * (time.monotonic() - begin - self._usual)

    def _counted(self, receive: Any, begin: float, announced: str | None) -> Any:
        """Returns a `receive` that raises HTTPException for a body that is too large or too slow."""
        size, more, limits = 0, True, self._limits

        async def counted() -> Any:
            nonlocal size, more
            if not more:
                return await receive()
            if max(size, int(announced or 0)) > limits.max_mb * 2**20:
                raise HTTPException(413, f"larger than {limits.max_mb:g} MB (--max_mb)")
            try:
                message = await asyncio.wait_for(receive(), begin + limits.receive_seconds - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"not received in {limits.receive_seconds:g} s (--receive_seconds)") from None
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            return message

        return counted


def create_app(models: Mapping[str, Predictor], limits: Limits | None = None) -> FastAPI:
    """Returns the ASGI application of models by name; the first is the default of a request."""
    limits, registry = limits or Limits(), prometheus_client.CollectorRegistry()  # a process may hold several apps
    prometheus_client.ProcessCollector(registry=registry)
    requests = prometheus_client.Counter("vivit_requests", "Predictions by HTTP status.", ["code"], registry=registry)
    active = prometheus_client.Gauge("vivit_active_requests", "Predictions not yet answered.", registry=registry)
    seconds = prometheus_client.Summary("vivit_seconds", "Seconds of decoding and model.", ["stage"], registry=registry)
    app = FastAPI(title="vivit_jax", version=vivit_jax.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(_Admission, limits=limits, requests=requests, active=active)
    refusals: Any = {code: {"model": Refusal} for code in (400, 403, 404, 408, 413, 422, 429, 504)}
    turns, device = asyncio.Semaphore(limits.parallel), ThreadPoolExecutor(1, thread_name_prefix="model")

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """Answers as long as the server takes requests."""
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    def prometheus() -> Response:
        text = prometheus_client.generate_latest(registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/api/models")
    def describe() -> dict[str, Any]:
        """Returns the class names of each head of the models, and the limits of a request."""
        return {"models": {name: model.class_names for name, model in models.items()}, "limits": limits}

    @app.post("/api/predict", responses=refusals)
    async def predict(
        request: Request,
        file: UploadFile,
        model: str = next(iter(models)),
        top: Annotated[int, Query(ge=1, le=100)] = 5,
        clip: bool = False,
        relevance: bool = False,
        timeline: bool = False,
    ) -> Answer:
        """Ranks the labels of a video file; adds the model's input, what the labels rest on, and labels over time."""
        if model not in models:
            raise HTTPException(404, f"no model of this name; there are: {', '.join(models)}")
        predictor = models[model]
        with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
            upload, frames = Path(folder, "upload"), Path(folder, "frames")
            with upload.open("wb") as stored:
                await asyncio.to_thread(shutil.copyfileobj, file.file, stored, 1 << 20)
            async with turns:
                if await request.is_disconnected():
                    raise HTTPException(499, "the client has gone")
                side, loop = predictor.preprocessing.stored_short_side, asyncio.get_running_loop()
                try:
                    with seconds.labels("decode").time():
                        video = await asyncio.to_thread(decode.decode, upload, frames, side, limits)
                except decode.Refused as error:
                    raise HTTPException(*error.args) from None
                with seconds.labels("model").time():
                    options = str(frames), video, top, clip, relevance, timeline
                    answer = await loop.run_in_executor(device, _answer, predictor, *options)
        return Answer(model, file.filename or "", video, **answer)

    app.mount("/", StaticFiles(directory=Path(__file__).with_name("page"), html=True))
    return app


def warm_up(model: Predictor) -> None:
    """Compiles the programs of a model, so that the first request does not wait for that."""
    with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
        Image.new("RGB", (64, 64)).save(os.path.join(folder, "1.png"))
        _answer(model, folder, {"fps": 25.0, "frames": 1}, 1, True, True, True)


def _answer(model: Predictor, frames: str, video, top: int, clip, relevance, timeline) -> dict[str, Any]:
    """Runs in the thread of the model; returns fields of Answer."""
    prediction, prepared = model(frames, top), model.preprocessing
    frame_ms = int(np.clip(1000 * prepared.clip.stride / min(video["fps"], prepared.stored_fps or math.inf), 40, 500))
    answer: dict[str, Any] = {"labels": prediction.ranked}
    if clip:
        answer["clip"] = figures.animate(prediction.clips[0], frame_ms)
    if relevance:
        maps = prediction.relevance[0]
        answer["relevance"] = figures.animate(_overlay(prediction.clips[0], maps), frame_ms)
        answer["moments"] = maps.sum((1, 2)).tolist()
    if timeline and prepared.clip.sampling != "segments":  # whose frames are spread over the whole video
        hop = max(1.0, video["frames"] / (prepared.clip.num_frames * prepared.clip.stride * 32))
        answer["timeline"] = list(windows.segments(windows.windows(model, frames, str(hop), top=top)))
    return answer


def _overlay(clip: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Blends a clip, uint8 [T, H, W, 3], with maps [n_t, n_h, n_w] of 0 or more, from dark to bright."""
    colours = matplotlib.colormaps["inferno"](maps / (maps.max() or 1), bytes=True)[..., :3]
    heat = np.stack([Image.fromarray(each).resize(clip.shape[2:0:-1], Image.Resampling.BILINEAR) for each in colours])
    return (0.4 * clip + 0.6 * heat[np.arange(len(clip)) * len(maps) // len(clip)]).astype(np.uint8)
