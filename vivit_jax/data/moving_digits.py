"""The embedded data set: real handwriting, moving, in real video files.

Each video is an H.264 MP4 of 64 x 64 pixels, 12 to 30 frames a second and about 32 frames: one of the 1,797 scanned
digits that ship with scikit-learn (`load_digits`; Alpaydin and Kaynak, UCI repository) moves over a moving textured
background that says nothing about the class, under noise and drifting light.

* **verb**: 8 motions in four pairs. The two of a pair run over the same paths, one of them backwards, so that a model
  blind to the order of frames cannot tell them apart.
* **noun**: the digit.

Together that is the shape of EPIC-Kitchens-100 (verb, noun, action). The annotations are written in the formats that
EPIC-Kitchens-100 and Kinetics publish. No scan is in two splits. The same seed and sizes give the same bytes, whatever
the number of workers (for one version of NumPy and of the H.264 encoder).

    python -m vivit_jax.data.moving_digits --out=DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import fractions
import json

import numpy as np

from vivit_jax.data import annotations, workers
from vivit_jax.utils import progress_bar, storage, tables

# Order is the class id. Each verb is followed by its time reversal.
VERBS = (
    "move-left",
    "move-right",
    "move-up",
    "move-down",
    "circle-clockwise",
    "circle-anticlockwise",
    "grow",
    "shrink",
)
NOUNS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 64
FRAMES = (26, 38)
FPS = (12, 30)
NUM_TRAIN, NUM_VALIDATION, SEED = 2400, 480, 0
MANIFEST = "moving_digits.json"
# Raised whenever the generator's output changes: files of another version are not taken for these.
GENERATOR_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Clip:
    """What one video shows: `scan` (0 to 1,796, row of `load_digits`), `verb`, `noun` (class ids) and its file."""

    video_id: str
    scan: int
    verb: int
    noun: int
    num_frames: int
    fps: int
    split: str
    seed: int


def plan(train: int = NUM_TRAIN, validation: int = NUM_VALIDATION, seed: int = SEED) -> list[Clip]:
    """The clips of both splits, in order: verbs and digits balanced, no scan in two splits.

    Args:
      train, validation: number of videos, at least 1 each.
      seed: any integer >= 0.

    Raises:
      ValueError: a size below 1 or a negative seed.
    """
    if min(train, validation) < 1 or seed < 0:
        raise ValueError(f"train={train}, validation={validation}, seed={seed}: needs 1 or more videos and a seed >= 0")
    from sklearn.datasets import load_digits

    digits = load_digits().target
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(digits))
    held_out = order[: len(order) // 5]
    pools = {"train": order[len(order) // 5 :], "validation": held_out}
    clips: list[Clip] = []
    made: dict[int, int] = {}
    for split, count in (("train", train), ("validation", validation)):
        scans = {d: [int(s) for s in pools[split] if digits[s] == d] for d in range(len(NOUNS))}
        used = dict.fromkeys(scans, 0)
        # Every combination of verb and digit as often as any other, then in random order.
        combination = np.arange(count) % (len(VERBS) * len(NOUNS))
        for i in rng.permutation(count):
            verb, noun = int(combination[i] % len(VERBS)), int(combination[i] // len(VERBS) % len(NOUNS))
            scan = scans[noun][used[noun] % len(scans[noun])]
            used[noun] += 1
            made[scan] = made.get(scan, 0) + 1
            clips.append(
                Clip(
                    video_id=f"P{scan:04d}_{made[scan]:02d}",
                    scan=scan,
                    verb=verb,
                    noun=noun,
                    num_frames=int(rng.integers(FRAMES[0], FRAMES[1] + 1)),
                    fps=int(rng.integers(FPS[0], FPS[1] + 1)),
                    split=split,
                    seed=int(rng.integers(2**62)),
                )
            )
    return clips


def trajectory(verb: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """The digit's way: float64 [num_frames, 3] of centre x, centre y and height, in pixels.

    Both verbs of a pair draw the same path from the same `rng`; the second runs it backwards.
    """
    s = np.linspace(0.0, 1.0, num_frames)
    # A gentle change of speed, symmetric in distribution, so that no speed belongs to one end of the way.
    s = s + rng.uniform(-0.08, 0.08) * np.sin(2 * np.pi * s)
    height = rng.uniform(25.0, 31.0)
    middle = SIZE / 2 - 0.5
    rest = middle + rng.uniform(-9.0, 9.0, size=2)
    amplitude = rng.uniform(24.0, 34.0)
    turn, phase, radius = rng.uniform(0.7, 1.1) * 2 * np.pi, rng.uniform(0, 2 * np.pi), rng.uniform(11.0, 14.0)
    low, high = rng.uniform(14.0, 19.0), rng.uniform(38.0, 46.0)
    x, y, size = np.full(num_frames, rest[0]), np.full(num_frames, rest[1]), np.full(num_frames, height)
    pair, backwards = divmod(verb, 2)
    along = middle + (rest[pair % 2] - middle) * 0.4 + amplitude * (0.5 - s)
    if pair == 0:
        x = along
    elif pair == 1:
        y = along
    elif pair == 2:  # y points down, so a growing angle goes round clockwise
        x = middle + (rest[0] - middle) * 0.4 + radius * np.cos(phase + turn * (s - 0.5))
        y = middle + (rest[1] - middle) * 0.4 + radius * np.sin(phase + turn * (s - 0.5))
    else:
        size = low * (high / low) ** s
    way = np.stack([x, y, size], axis=1)
    return way[::-1].copy() if backwards else way


def render(clip: Clip, scan: np.ndarray) -> np.ndarray:
    """The frames of a clip: uint8 [num_frames, 64, 64, 3]. `scan` is the 8 x 8 grey image, 0 to 16."""
    rng = np.random.default_rng(clip.seed)
    way = trajectory(clip.verb, clip.num_frames, rng)
    ink = _ink(np.asarray(scan, np.float32) / 16.0, way)[..., None]
    light = rng.uniform(0.12, 0.42)
    texture, shift = _background(clip.num_frames, rng)
    texture += np.float32(light)
    # The ink is brighter than the background by a clear step, in any hue: a few minutes' training has to find it.
    colour = np.clip(light + rng.uniform(0.42, 0.58) + rng.uniform(-0.14, 0.14, 3), 0.0, 1.0).astype(np.float32)
    drift = 1.0 + rng.uniform(0.03, 0.14) * np.sin(
        2 * np.pi * (rng.uniform(-1.0, 1.0) * np.linspace(0, 1, clip.num_frames) + rng.uniform())
    )
    # Noise is cut from one strip at a random place for each frame: drawing it afresh would cost more than all the rest.
    pixels = SIZE * SIZE * 3
    strip = rng.uniform(0.006, 0.02) * rng.standard_normal(4 * pixels, dtype=np.float32)
    cuts = rng.integers(0, 3 * pixels, clip.num_frames)
    frames = np.empty((clip.num_frames, SIZE, SIZE, 3), np.uint8)
    for i in range(clip.num_frames):
        image = _shifted(texture, shift[i])
        image += (colour - image) * ink[i]
        image *= np.float32(255.0 * drift[i])
        image += np.float32(255.0) * strip[cuts[i] : cuts[i] + pixels].reshape(SIZE, SIZE, 3) + np.float32(0.5)
        frames[i] = np.clip(image, 0.0, 255.0, out=image)
    return frames


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -1/2 (IEEE ASSP 29, 1981)."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _ink(scan: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Coverage by ink in [0, 1], float32 [frames, 64, 64]: the scan enlarged smoothly to `way`'s places and heights."""
    cell = (way[:, 2] / len(scan))[:, None, None]
    pixel, sample = np.arange(SIZE)[None, :, None], np.arange(len(scan))[None, None, :] - (len(scan) - 1) / 2
    columns = _cubic((pixel - way[:, 0, None, None]) / cell - sample).astype(np.float32)
    rows = _cubic((pixel - way[:, 1, None, None]) / cell - sample).astype(np.float32)
    return np.clip(1.25 * (rows @ scan @ columns.transpose(0, 2, 1)), 0.0, 1.0)


def _background(num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A smooth coloured periodic texture about zero, float32 [64, 64, 3], and its place in each frame, [frames, 2]."""
    frequency = np.fft.fftfreq(SIZE) * SIZE
    distance = np.hypot(frequency[:, None], frequency[None, : SIZE // 2 + 1])
    spectrum = np.exp(-0.5 * (distance / rng.uniform(2.0, 7.0)) ** 2)
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((2, SIZE, SIZE))) * spectrum, s=(SIZE, SIZE))
    texture /= texture.std(axis=(1, 2), keepdims=True)
    colours = rng.uniform(-1.0, 1.0, (2, 3))
    colours *= rng.uniform(0.015, 0.045) / np.abs(colours).mean()
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 1.6)
    shift = speed * np.outer(np.arange(num_frames), [np.sin(angle), np.cos(angle)])
    return np.einsum("khw,kc->hwc", texture, colours).astype(np.float32), shift


def _shifted(texture: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A periodic texture [H, W, C] moved down and right by `shift` pixels, bilinear between whole pixels."""
    whole = np.floor(shift).astype(int)
    fy, fx = (shift - whole).astype(np.float32)
    image = np.roll(texture, whole, axis=(0, 1))
    image = image + fy * (np.roll(image, 1, axis=0) - image)
    return image + fx * (np.roll(image, 1, axis=1) - image)


def write_video(path: storage.Place, frames: np.ndarray, fps: int) -> None:
    """H.264 MP4 of uint8 frames [T, H, W, 3]; the file appears whole or not at all."""
    import av

    with storage.written(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "18"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_clip(task: tuple[str, Clip, np.ndarray]) -> str:
    """Renders and writes one clip (folder, clip, scan); a worker's task. Returns its video_id."""
    folder, clip, scan = task
    write_video(storage.path(folder) / f"{clip.video_id}.mp4", render(clip, scan), clip.fps)
    return clip.video_id


def generate(
    out: storage.Place,
    train: int = NUM_TRAIN,
    validation: int = NUM_VALIDATION,
    seed: int = SEED,
    num_workers: int | None = None,
    progress: bool = True,
) -> storage.AnyPath:
    """Makes the data set under `out`: `videos/*.mp4`, `annotations/*.csv` and a manifest. What is done stays.

    Args:
      out: folder; made where absent. Interrupted work is taken up where it stopped.
      train, validation: number of videos.
      seed: of the plan and of every clip.
      num_workers: processes, None for one a core, 0 for this process.
      progress: show a progress bar.

    Returns:
      `out`, as a path.

    Raises:
      ValueError: `out` holds a set made with another seed, sizes or version of the generator; or bad sizes.
    """
    out = storage.path(out)
    wanted = {"seed": seed, "train": train, "validation": validation, "generator": GENERATOR_VERSION}
    manifest = out / MANIFEST
    state = json.loads(manifest.read_text()) if manifest.exists() else {**wanted, "complete": False}
    found = {key: state.get(key) for key in wanted}
    if found != wanted:
        raise ValueError(
            f"{out} holds moving_digits made with {found}, asked for is {wanted}: give another folder or delete that"
        )
    if state["complete"]:
        return out
    clips = plan(train, validation, seed)
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    storage.write(manifest, json.dumps(state, indent=1))
    from sklearn.datasets import load_digits

    scans = load_digits().images
    there = set(storage.names(videos))
    missing = [(str(videos), clip, scans[clip.scan]) for clip in clips if f"{clip.video_id}.mp4" not in there]
    done = workers.ordered_map("vivit_jax.data.moving_digits:write_clip", missing, num_workers, look_ahead=16)
    bar = progress_bar.bar(
        done, title="moving_digits: videos", total=len(clips), done=len(clips) - len(missing), show=progress
    )
    for result in bar:
        if isinstance(result, workers.WorkerError):
            raise result
    (out / "annotations").mkdir(exist_ok=True)
    for name, text in _annotation_files(clips).items():
        storage.write(out / "annotations" / name, text)
    storage.write(manifest, json.dumps({**state, "complete": True}, indent=1))
    return out


def _annotation_files(clips: list[Clip]) -> dict[str, str]:
    """File name -> text, in the published formats of EPIC-Kitchens-100 and Kinetics."""
    files = {}
    for split, kinetics_split in (("train", "train"), ("validation", "val")):
        chosen = [clip for clip in clips if clip.split == split]
        epic, kinetics = [], []
        for clip in chosen:
            seconds = clip.num_frames / clip.fps
            verb, noun = VERBS[clip.verb], NOUNS[clip.noun]
            epic.append(
                annotations.epic_row(clip.video_id, seconds, clip.num_frames, (verb, clip.verb), (noun, clip.noun))
            )
            kinetics.append([verb, clip.video_id, "0", str(int(np.ceil(seconds))), kinetics_split])
        files[f"EPIC_100_{split}.csv"] = tables.to_csv(annotations.EPIC_COLUMNS, epic)
        files[f"kinetics_{kinetics_split}.csv"] = tables.to_csv(annotations.KINETICS_COLUMNS, kinetics)
    for head, names in (("verb", VERBS), ("noun", NOUNS)):
        rows = [[str(i), name, f"['{name}']"] for i, name in enumerate(names)]
        files[f"EPIC_100_{head}_classes.csv"] = tables.to_csv(("id", "key", "instances"), rows)
    return files


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to make the data set in")
    parser.add_argument("--train", type=int, default=NUM_TRAIN, help="training videos")
    parser.add_argument("--validation", type=int, default=NUM_VALIDATION, help="validation videos")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=None, help="processes; one a core when left out")
    flags = parser.parse_args(argv)
    try:
        out = generate(flags.out, flags.train, flags.validation, flags.seed, flags.workers)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"moving_digits: {flags.train} + {flags.validation} videos in {out}")


if __name__ == "__main__":
    # Through the module's own name: what is sent to the workers must not belong to `__main__`.
    from vivit_jax.data import moving_digits

    moving_digits.main()
