"""`configs/finetune.py` on synthetic lip movements: from scratch, and after masked pretraining on the same videos.

    python -m benchmarks.finetuning --out=runs/lips/videos
    python -m vivit_jax.sweep --config=benchmarks/finetuning.py --workdir=runs/lips \\
        --set=data.video_dir=runs/lips/videos

The videos are grey clips of 4 to 22 frames, 56 x 72 pixels, of a mouth that says one of ten words. A word is a course
of the opening and the width of the mouth; five words are the others backwards. Speakers differ in lips, skin, light and
speed; five of the fifteen are held out. `_quarter`: a quarter of the training videos has labels.
docs/finetuning.md has the results. Hardware: one CPU core, about an hour, most of it the pretraining.
"""

import argparse
import csv
import pathlib

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC

from vivit_jax.config.flags import load_config
from vivit_jax.data.video.encode import write_video

HEIGHT, WIDTH, FPS = 56, 72, 25
VIDEOS, SPEAKERS = 1200, 15
HELD_OUT = range(1, SPEAKERS, 3)
POINTS = 5  # of the course of a word
WORDS = (*(f"word {i}" for i in range(5)), *(f"word {i} backwards" for i in range(5)))


def course(word: int) -> np.ndarray:
    """Returns opening and width of the mouth at evenly spaced points of a word, [POINTS, 2] in [0, 1]."""
    backwards, base = divmod(word, len(WORDS) // 2)
    values = np.random.default_rng([1, base]).uniform(0.15, 0.85, (POINTS, 2))
    return values[::-1] if backwards else values


def render(word: int, speaker: np.random.Generator, clip: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a clip of a word, uint8 [frames, HEIGHT, WIDTH, 3], and the course of the mouth in it, [POINTS, 2].

    `speaker` has the same state in all clips of a speaker.
    """
    skin, teeth = speaker.uniform(110, 200), speaker.uniform(0, 1)
    lips, inside = skin - speaker.uniform(10, 50), skin - speaker.uniform(50, 90)
    habit = speaker.normal(0, 0.15, (POINTS, 2))  # of opening and width
    size, thickness, talks = speaker.uniform(0.8, 1.2), speaker.uniform(3, 6), speaker.uniform(0.7, 1.2)
    side, texture = speaker.uniform(-0.6, 0.6), speaker.normal(0, 1, (HEIGHT // 8 + 1, WIDTH // 8 + 1))
    texture = np.kron(texture, np.ones((8, 8)))[:HEIGHT, :WIDTH] * speaker.uniform(2, 8)

    frames = int(np.clip(round(clip.normal(13, 4) * talks), 4, 22))
    time = np.linspace(0, 1, frames) ** clip.uniform(0.8, 1.25)
    points = course(word) + habit + clip.normal(0, 0.12, (POINTS, 2))
    opening, width = (np.interp(time, np.linspace(0, 1, POINTS), points[:, i]) for i in (0, 1))
    opening = (1 + 9 * np.clip(opening, 0, 1)) * size
    width = (12 + 10 * np.clip(width, 0, 1)) * size
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    start, drift = clip.uniform(-6, 6, 2), clip.normal(0, 3, 2)
    centre = np.array([HEIGHT / 2, WIDTH / 2]) + start + time[:, None] * drift
    light = clip.uniform(0.6, 1.2)
    out = np.empty((frames, HEIGHT, WIDTH))
    for i in range(frames):
        dy, dx = y - centre[i, 0], x - centre[i, 1]
        inner = (dy / opening[i]) ** 2 + (dx / (width[i] - thickness)) ** 2 < 1
        outer = (dy / (opening[i] + thickness)) ** 2 + (dx / width[i]) ** 2 < 1
        image = skin + texture + 25 * side * (x / WIDTH - 0.5)
        image = np.where(outer, lips, image)
        image = np.where(inner, np.where((dy < -0.3 * opening[i]) & (teeth > 0.4), skin + 30, inside), image)
        out[i] = light * image + clip.normal(0, 8, (HEIGHT, WIDTH))
    return np.repeat(np.clip(out, 0, 255).astype(np.uint8)[..., None], 3, axis=-1), points


def generate(out: pathlib.Path) -> None:
    """Writes the videos and `videos.csv` (path, label, group, split); prints the accuracy of other classifiers."""
    out.mkdir(parents=True)
    rows, clips, courses = [("path", "label", "group", "split")], [], []
    words, speakers = np.arange(VIDEOS) % len(WORDS), np.arange(VIDEOS) // len(WORDS) % SPEAKERS
    for i, (word, speaker) in enumerate(zip(words, speakers, strict=True)):
        name = f"{i:04d}.mp4"
        clip, points = render(word, np.random.default_rng([2, speaker]), np.random.default_rng([3, i]))
        write_video(out / name, clip, FPS)
        clips.append(clip)
        courses.append(points.ravel())
        split = "validation" if speaker in HELD_OUT else "train"
        rows.append((name, WORDS[word], f"speaker{speaker:02d}", split))
    with (out / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    compare(clips, np.array(courses), words, speakers)


def compare(clips: list[np.ndarray], courses: np.ndarray, words: np.ndarray, speakers: np.ndarray) -> None:
    """Prints the accuracy of two classifiers for the held-out speakers.

    An RBF ridge on eight frames of 12 x 16 pixels; and a support vector machine that is given the course of the mouth.
    """
    tiny = [c[np.linspace(0, len(c) - 1, 8).round().astype(int), 4:52, 4:68, 0] for c in clips]
    x = np.array([c.reshape(8, 12, 4, 16, 4).mean((2, 4)).ravel() for c in tiny])
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    test = np.isin(speakers, HELD_OUT)
    ridge = KernelRidge(kernel="rbf", gamma=0.5 / x.shape[1], alpha=1e-2)
    ridge.fit(x[~test], np.eye(len(WORDS))[words[~test]])
    print(f"ridge: {np.mean(ridge.predict(x[test]).argmax(1) == words[test]):.1%}")
    machine = SVC(C=3).fit(courses[~test], words[~test])
    print(f"support vector machine, given the course of the mouth: {machine.score(courses[test], words[test]):.1%}")


def get_config():
    return load_config("finetune")


def sweep():
    quarter = {"data.subset.fraction": 0.25}
    pretrained = {"init_from.path": "{workdir}/pretrained/seed_{seed}"}
    return {
        "scratch": {},
        "scratch_quarter": quarter,
        "pretrained": {"pretrain.mask_ratio": 0.75},
        "finetuned": pretrained,
        "finetuned_quarter": {**pretrained, **quarter},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a new folder for the videos")
    generate(parser.parse_args().out)


if __name__ == "__main__":
    main()
