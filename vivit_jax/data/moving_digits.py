"""The embedded data set: scanned handwritten digits, moving, in real video files.

Each video is an H.264 MP4 of 64 x 64 pixels, 12 to 30 frames per second and about 32 frames: one of the 1,797 scans of
scikit-learn (`load_digits`; Alpaydin and Kaynak, UCI repository) moves over a moving textured background that does not
depend on the class, with noise and changing light.

As in EPIC-Kitchens-100, a class is a verb and a noun: one of 8 motions in four pairs, of which the second runs the
paths of the first backwards, so that a model that ignores the order of frames cannot tell them apart; and the digit.
The annotations are in the format of EPIC-Kitchens-100. No scan is in two splits. The same seed and sizes give the same
bytes for any number of workers (with one version of NumPy and of the H.264 encoder).

    python -m vivit_jax.data.moving_digits --out=DIR
"""

import argparse
import dataclasses
import itertools
import json
from collections import Counter

import numpy as np

from vivit_jax.data import catalog, workers
from vivit_jax.data.annotations import published
from vivit_jax.data.video import encode
from vivit_jax.utils import storage, tables, terminal

# In the order of the class ids; each verb is followed by its time reversal. The last two pairs are compound.
VERBS = (
    "move-left", "move-right", "grow", "shrink", "shake-then-nod", "nod-then-shake", "loop-then-swell",
    "swell-then-loop",
)  # fmt: skip
NOUNS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 64
FRAMES = (31, 34)
FPS = (12, 30)
NUM_TRAIN, NUM_VALIDATION, SEED = 2400, 480, 0
MANIFEST = "moving_digits.json"


@dataclasses.dataclass(frozen=True)
class Clip:
    """Content of one video; `scan` is the row of `load_digits` (0 to 1,796), `verb` and `noun` are class ids."""

    video_id: str
    scan: int
    verb: int
    noun: int
    num_frames: int
    fps: int
    split: str
    seed: int


def plan(train: int = NUM_TRAIN, validation: int = NUM_VALIDATION, seed: int = SEED) -> list[Clip]:
    """Returns the clips of both splits in order: verbs and digits balanced, no scan in two splits."""
    if min(train, validation) < 1 or seed < 0:
        raise ValueError(f"train={train}, validation={validation}, seed={seed}: needs 1 or more videos and a seed >= 0")
    from sklearn.datasets import load_digits

    digits = load_digits().target
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(digits))
    num_held_out = len(order) // 5
    pools = {"train": order[num_held_out:], "validation": order[:num_held_out]}
    clips: list[Clip] = []
    videos_of_scan = Counter()
    for split, count in (("train", train), ("validation", validation)):
        scans = [itertools.cycle(pools[split][digits[pools[split]] == digit].tolist()) for digit in range(len(NOUNS))]
        # Equally many of each pair of verb and digit, in random order.
        pairs = np.arange(count) % (len(VERBS) * len(NOUNS))
        for i in rng.permutation(count):
            verb, noun = int(pairs[i] % len(VERBS)), int(pairs[i] // len(VERBS))
            scan = next(scans[noun])
            videos_of_scan[scan] += 1
            video_id = f"P{scan:04d}_{videos_of_scan[scan]:02d}"
            num_frames, fps = (int(rng.integers(low, high + 1)) for low, high in (FRAMES, FPS))
            clips.append(Clip(video_id, scan, verb, noun, num_frames, fps, split, seed=int(rng.integers(2**62))))
    return clips


def trajectory(verb: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the path of the digit: float64 [num_frames, 3] of centre x, centre y and height, in pixels.

    Both verbs of a pair draw the same path from the same `rng`; the second runs it backwards. A part of a compound
    motion looks the same in both directions, and rest surrounds it, so that a few consecutive frames show that it
    happens, not whether it comes first: any 32 consecutive frames hold both parts, no 8 frames see both.
    """
    s = np.linspace(0.0, 1.0, num_frames)
    # A small change of speed, symmetric in distribution, so that the speed does not tell the direction.
    s = s + rng.uniform(-0.08, 0.08) * np.sin(2 * np.pi * s)
    height = rng.uniform(25.0, 31.0)
    middle = SIZE / 2 - 0.5
    rest = middle + rng.uniform(-6.0, 6.0, size=2)
    amplitude = rng.uniform(24.0, 34.0)
    low, high = rng.uniform(14.0, 19.0), rng.uniform(38.0, 46.0)
    first, second = _parts(num_frames, rng)
    reach, swing = rng.uniform(9.0, 13.0, 2) * rng.choice([-1, 1], 2), rng.uniform(5.5, 7.5)
    growth = rng.uniform(0.45, 0.65)
    x, y, size = np.full(num_frames, rest[0]), np.full(num_frames, rest[1]), np.full(num_frames, height)
    pair, backwards = divmod(verb, 2)
    if pair == 0:
        x = middle + (rest[0] - middle) * 0.6 + amplitude * (0.5 - s)
    elif pair == 1:
        size = low * (high / low) ** s
    elif pair == 2:
        x += reach[0] * np.sin(2 * np.pi * first)
        y += reach[1] * np.sin(2 * np.pi * second)
    else:
        x += swing * np.sin(2 * np.pi * first) * np.sign(reach[0])
        y += swing * (1 - np.cos(2 * np.pi * first)) * np.sign(reach[1])
        size *= 1 + growth * np.sin(np.pi * second) ** 2
    path = np.stack([x, y, size], axis=1)
    return path[::-1].copy() if backwards else path


def _parts(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how much of each of two parts of a motion is done in each frame, from 0 to 1: float64 [2, num_frames].

    Between them are 7 frames or more of rest. How frames are grouped into tubelets does not tell the order either: the
    parts begin nearly uniformly within a group of 8 frames, and are 16 frames apart, or as often more as less.
    """
    lengths, distance = rng.uniform(6.0, 7.0, 2), rng.uniform(14.5, 17.5)
    # Centre of the first part: a clip of 32 frames, wherever it begins, has both.
    low = max(num_frames - 32, 0) + lengths[0] / 2
    centre = rng.uniform(low, min(num_frames, 32) - 1 - distance - lengths[1] / 2)
    starts = np.array([centre, centre + distance]) - lengths / 2
    return np.clip((np.arange(num_frames) - starts[:, None]) / lengths[:, None], 0, 1)


def render(clip: Clip, scan: np.ndarray) -> np.ndarray:
    """Renders a clip as uint8 [num_frames, 64, 64, 3]; `scan` is the 8 x 8 grayscale image, 0 to 16."""
    rng = np.random.default_rng(clip.seed)
    path = trajectory(clip.verb, clip.num_frames, rng)
    ink = _ink(np.asarray(scan, np.float32) / 16.0, path)[..., None]
    light = rng.uniform(0.12, 0.42)
    texture, shift = _background(clip.num_frames, rng)
    texture += np.float32(light)
    # The ink is clearly brighter than the background, in any hue: a few minutes of training have to find it.
    colour = np.clip(light + rng.uniform(0.42, 0.58) + rng.uniform(-0.14, 0.14, 3), 0.0, 1.0).astype(np.float32)
    drift = 1.0 + rng.uniform(0.03, 0.14) * np.sin(
        2 * np.pi * (rng.uniform(-1.0, 1.0) * np.linspace(0, 1, clip.num_frames) + rng.uniform())
    )
    # Each frame's noise is a random window of one strip: fresh noise would cost more than everything else.
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
    """Cubic convolution kernel with a = -1/2 (Keys, IEEE ASSP 29, 1981)."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _ink(scan: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Returns the ink coverage in [0, 1], float32 [frames, 64, 64]: the scan, enlarged and moved along `path`."""
    cell = (path[:, 2] / len(scan))[:, None, None]
    pixel, sample = np.arange(SIZE)[None, :, None], np.arange(len(scan))[None, None, :] - (len(scan) - 1) / 2
    columns = _cubic((pixel - path[:, 0, None, None]) / cell - sample).astype(np.float32)
    rows = _cubic((pixel - path[:, 1, None, None]) / cell - sample).astype(np.float32)
    return np.clip(1.25 * (rows @ scan @ columns.transpose(0, 2, 1)), 0.0, 1.0)


def _background(num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a smooth periodic texture around zero, float32 [64, 64, 3], and its shift in each frame, [frames, 2]."""
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
    """Moves a periodic texture [H, W, C] down and right by `shift` pixels (bilinear)."""
    whole = np.floor(shift).astype(int)
    fy, fx = (shift - whole).astype(np.float32)
    image = np.roll(texture, whole, axis=(0, 1))
    image = image + fy * (np.roll(image, 1, axis=0) - image)
    return image + fx * (np.roll(image, 1, axis=1) - image)


def write_clip(task: tuple[str, Clip, np.ndarray]) -> None:
    """Renders and writes one clip, (folder, clip, scan), as an H.264 MP4; runs in a worker process."""
    folder, clip, scan = task
    encode.write_video(storage.path(folder) / f"{clip.video_id}.mp4", render(clip, scan), clip.fps)


def generate(
    out: storage.PathLike,
    train: int = NUM_TRAIN,
    validation: int = NUM_VALIDATION,
    seed: int = SEED,
    num_workers: int | None = None,
    progress: bool = True,
) -> storage.AnyPath:
    """Generates `train` + `validation` videos, their annotations and a manifest in `out`; returns `out` as a path.

    An interrupted call continues where it stopped. Videos of another seed, size or version of the generator in `out`
    are an error (ValueError). `num_workers`: None: one per core, 0: none but this one.
    """
    out = storage.path(out)
    version = catalog.get("moving_digits").version
    requested = {"seed": seed, "train": train, "validation": validation, "generator": version}
    manifest = out / MANIFEST
    state = json.loads(manifest.read_text()) if manifest.exists() else {**requested, "complete": False}
    stored = {key: state.get(key) for key in requested}
    if stored != requested:
        difference = f"made with {stored}, requested is {requested}"
        raise ValueError(f"{out} holds moving_digits {difference}: use another folder or delete it")
    if state["complete"]:
        return out
    clips = plan(train, validation, seed)
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    storage.write(manifest, json.dumps(state, indent=1))
    from sklearn.datasets import load_digits

    scans = load_digits().images
    present = set(storage.names(videos))
    missing = [(str(videos), clip, scans[clip.scan]) for clip in clips if f"{clip.video_id}.mp4" not in present]
    results = workers.ordered_map("vivit_jax.data.moving_digits:write_clip", missing, num_workers, look_ahead=16)
    title, done = "moving_digits: videos", len(clips) - len(missing)
    for result in terminal.progress_bar(results, title=title, total=len(clips), done=done, show=progress):
        if isinstance(result, workers.WorkerError):
            raise result
    (out / "annotations").mkdir(exist_ok=True)
    for name, text in _annotation_files(clips).items():
        storage.write(out / "annotations" / name, text)
    storage.write(manifest, json.dumps({**state, "complete": True}, indent=1))
    return out


def _annotation_files(clips: list[Clip]) -> dict[str, str]:
    """Returns file name -> text, in the published format of EPIC-Kitchens-100."""
    files = {}
    for split in ("train", "validation"):
        rows = []
        for clip in (clip for clip in clips if clip.split == split):
            video, verb, noun, seconds = clip.video_id, VERBS[clip.verb], NOUNS[clip.noun], clip.num_frames / clip.fps
            # Rounded up to the hundredths of the format, so that the segment includes the last frame.
            stop = f"00:00:{np.ceil(seconds * 100) / 100:05.2f}"
            rows.append([
                f"{video}_0", f"P{clip.scan:04d}", video, "00:00:00.000", "00:00:00.00", stop, 1, clip.num_frames,
                f"{verb} {noun}", verb, clip.verb, noun, clip.noun, f"['{noun}']", f"[{clip.noun}]",
            ])  # fmt: skip
        files[f"EPIC_100_{split}.csv"] = tables.to_csv(published.EPIC_COLUMNS, rows)
    for head, names in (("verb", VERBS), ("noun", NOUNS)):
        rows = [[class_id, name, f"['{name}']"] for class_id, name in enumerate(names)]
        files[f"EPIC_100_{head}_classes.csv"] = tables.to_csv(("id", "key", "instances"), rows)
    return files


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the data set")
    parser.add_argument("--train", type=int, default=NUM_TRAIN, help="training videos")
    parser.add_argument("--validation", type=int, default=NUM_VALIDATION, help="validation videos")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=None, help="processes; default: one per core")
    flags = parser.parse_args(argv)
    try:
        out = generate(flags.out, flags.train, flags.validation, flags.seed, flags.workers)
    except (OSError, ValueError, workers.WorkerError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"moving_digits: {flags.train} + {flags.validation} videos in {out}")


if __name__ == "__main__":
    # By the name of the module: objects sent to the workers must not belong to `__main__`.
    from vivit_jax.data import moving_digits

    moving_digits.main()
