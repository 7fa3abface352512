"""Decodes an upload in a child process with limits on its memory and time.

The child writes the frames that the model's records would hold, uncompressed, into a new file. The process with the
model reads only that: decoders, which crash on some damaged files, never see an upload there.
"""

import contextlib
import dataclasses
import fractions
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vivit_jax.serve import decode; decode.main()"
_TICKS = 90_000  # of a second: the time base of the frames


def _field(default: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may take; a megabyte has 2^20 bytes."""

    max_mb: float = _field(64.0, "Most megabytes of an upload.")
    receive_seconds: float = _field(60.0, "Most seconds in which an upload arrives.")
    max_seconds: float = _field(60.0, "Most seconds of its video.")
    max_frames: int = _field(15_000, "Most frames of its video.")
    max_pixels: int = _field(4096 * 2304, "Most pixels of a frame.")
    decode_seconds: float = _field(30.0, "Most seconds of the decoding.")
    decode_mb: int = _field(1536, "Most megabytes of address space of the process that decodes.")
    frames_mb: int = _field(2048, "Most megabytes of the decoded frames, which a temporary file holds.")
    parallel: int = _field(2, "Requests in work at the same time; the model computes one.")
    queue: int = _field(8, "Requests that may wait; more are refused (HTTP 429).")


class Refused(ValueError):
    """(HTTP status, reason) of an upload without a video within the limits."""


def decode(upload: Path, frames: Path, short_side: int | None, limits: Limits) -> dict[str, float]:
    """Writes the frames of `upload`, at most `short_side` pixels in the shorter side, to the file `frames`.

    Returns their number `frames`, `fps`, `seconds`, `width` and `height`. Raises Refused.
    """
    task = {"upload": str(upload), "target": str(frames), "short_side": short_side, **dataclasses.asdict(limits)}
    command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    options = {"stdin": subprocess.DEVNULL, "env": environment, "process_group": 0}  # Ctrl-C is the server's
    try:
        process = subprocess.run(command, capture_output=True, timeout=limits.decode_seconds, **options)
    except subprocess.TimeoutExpired:
        raise Refused(504, f"not decoded within {limits.decode_seconds:g} s (--decode_seconds)") from None
    if process.returncode:
        ended = f"the process that decoded it ended with status {process.returncode}"
        raise Refused(422, f"{ended}: damaged, or in need of more than {limits.decode_mb} MB (--decode_mb)")
    answer = json.loads(process.stdout)
    if "error" in answer:
        raise Refused(422, answer["error"])
    return answer


def main() -> None:
    """Runs in the child: decodes the upload of the task in `sys.argv[2]` and prints the answer as JSON."""
    from vivit_jax.data.video import decode  # takes more memory than a low limit allows

    task = json.loads(sys.argv[2])
    limits = {"AS": task["decode_mb"] << 20, "FSIZE": task["frames_mb"] + 16 << 20, "CORE": 0}
    for name, limit in {**limits, "CPU": int(task["decode_seconds"]) + 1}.items():
        with contextlib.suppress(ValueError, OSError):  # one that the system does not have, or that is lower already
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    try:
        answer = write(_frames(task, decode.iterate_frames), task["target"])
    except MemoryError:
        answer = {"error": f"takes more than {task['decode_mb']} MB to decode (--decode_mb)"}
    except Exception as error:  # mostly VideoError, which begins with the path
        answer = {"error": str(error).removeprefix(f"{task['upload']}: ") or type(error).__name__}
    print(json.dumps(answer))


def _frames(task: dict[str, Any], read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    size, options = 0, {name: task[name] for name in ("short_side", "max_pixels")}
    for number, frame in enumerate(read(task["upload"], **options)):
        size += frame.image.nbytes
        if max(frame.image.shape[:2]) > 32 * min(frame.image.shape[:2]):  # the model enlarges frames before it crops
            raise ValueError("one side of its frames is over 32 times as long as the other")
        if number >= task["max_frames"]:
            raise ValueError(f"more than {task['max_frames']} frames (--max_frames)")
        if frame.time >= task["max_seconds"]:
            raise ValueError(f"longer than {task['max_seconds']:g} s (--max_seconds)")
        if size > task["frames_mb"] << 20:
            raise ValueError(f"its frames take more than {task['frames_mb']} MB (--frames_mb)")
        yield frame


def write(frames: Iterator[Any], path: str) -> dict[str, float]:
    """Writes `decode.Frame`s to a file, which decodes to the same pixels and times; returns as `decode`."""
    import av

    stream, number = None, 0
    with av.open(path, "w", format="nut") as container:
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            if stream is None:
                fps, size = frame.fps, {"width": picture.width, "height": picture.height}
                stream = container.add_stream("rawvideo", rate=fractions.Fraction(fps).limit_denominator(100_000))
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "rgb24"
                stream.codec_context.time_base = fractions.Fraction(1, _TICKS)
            picture.pts, picture.time_base = round(frame.time * _TICKS), fractions.Fraction(1, _TICKS)
            container.mux(stream.encode(picture))
            number += 1
        container.mux(stream.encode())
    return {"frames": number, "fps": fps, "seconds": frame.time + 1 / fps, **size}
