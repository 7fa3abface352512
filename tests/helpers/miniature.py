"""Miniature data sets: a few videos each, in the official layout, with the official files.

Every frame shows its number (`videos.read_number`). The irregularities of the real files are included: quoted labels,
ids that begin with "-", files that are absent, damaged, replaced or not cut yet, several frame rates, several segments
of a video, test lists without labels.
"""

import dataclasses
import fractions
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.videos import numbered_video
from vivit_jax.data import catalog
from vivit_jax.data.annotations import published
from vivit_jax.utils import tables

NTSC_60 = fractions.Fraction(60000, 1001)


@dataclasses.dataclass(frozen=True)
class Miniature:
    """A data set on disk, and the expected result of its build.

    Attributes:
      dataset: from the catalog, or custom.
      videos, annotations: as given to `build`.
      expected: split -> (video id, labels, numbers of the frames) of each video that ends up in the records, in order.
      class_names: head -> names.
      rejects: video id -> part of the reason.
    """

    dataset: catalog.DatasetInfo
    videos: Path
    annotations: Path
    expected: Mapping[str, Sequence[tuple[str, Mapping[str, int], Sequence[int]]]]
    class_names: Mapping[str, Sequence[str]]
    rejects: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(name: str, folder: Path) -> Miniature:
    """Writes the miniature `name` (one of `NAMES`) into `videos` and `annotations` in `folder`, which it creates."""
    for part in ("videos", "annotations"):
        (folder / part).mkdir(parents=True)
    return _WRITERS[name](folder / "videos", folder / "annotations")


def _video(path: Path, count: int, fps=25) -> range:
    """A numbered video in the codec that its suffix usually means; returns the numbers of its frames."""
    codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(path.suffix, "libx264")
    numbered_video(path, count, fps, codec=codec)
    return range(count)


def kinetics(videos: Path, folder: Path) -> Miniature:
    """Kinetics-400 as CVDF's scripts leave it: a folder per split, the replacement archive unpacked beside them."""
    rock = 'playing "rock, paper, scissors"'
    rows = {
        "train": [
            ("testifying", "---QUuC4vJs", 84, 94),
            (rock, "-1IlTIWPNs4", 47, 57),
            ("abseiling", "zzzz_zz-zzz", 0, 10),
            ("abseiling", "gone_gone_g", 3, 13),
            ("testifying", "uncut_uncut", 1, 3),
            (rock, "broken_file", 5, 15),
        ],
        "val": [("abseiling", "0wR5jVB-WPk", 417, 427), (rock, "3caPS4FHFF8", 36, 46)],
    }
    for split, entries in rows.items():
        cells = [[label, video, str(start), str(end), split, "0"] for label, video, start, end in entries]
        text = tables.to_csv((*published.KINETICS_COLUMNS, "is_cc"), cells)
        (folder / f"{split}.csv").write_text(text)
    (folder / "test.csv").write_text("youtube_id,time_start,time_end,split\nunknown_one,0,10,test\n")
    frames = {
        "---QUuC4vJs": _video(videos / "train" / "---QUuC4vJs_000084_000094.mp4", 40),
        "-1IlTIWPNs4": _video(videos / "train" / "-1IlTIWPNs4_000047_000057.mp4", 21, NTSC_60),
        "zzzz_zz-zzz": _video(videos / "train" / "zzzz_zz-zzz_000000_000010.mp4", 33),
        "0wR5jVB-WPk": _video(videos / "val" / "0wR5jVB-WPk_000417_000427.mp4", 36),
        "3caPS4FHFF8": _video(videos / "val" / "3caPS4FHFF8_000036_000046.mp4", 17, 30),
        "broken_file": _video(
            videos / "replacement" / "replacement_for_corrupted_k400" / "broken_file_000005_000015.mp4", 18
        ),
        "uncut_uncut": range(25, 75),
    }
    _video(videos / "train" / "uncut_uncut.mp4", 100)
    (videos / "train" / "broken_file_000005_000015.mp4").write_bytes(b"\0" * 100)
    names = ["abseiling", rock, "testifying"]
    expected = {
        {"val": "validation"}.get(split, split): [
            (video, {"label": names.index(label)}, frames[video])
            for label, video, *_ in entries
            if not video.startswith("gone")
        ]
        for split, entries in rows.items()
    }
    rejects = {"gone_gone_g": "no such video"}
    return Miniature(catalog.get("kinetics400"), videos, folder, expected, {"label": names}, rejects)


def epic_kitchens(videos: Path, folder: Path) -> Miniature:
    """EPIC-Kitchens-100: segments, one overlapping the other, of videos at 59.94 and 50 frames per second."""
    verbs, nouns = ["take", "put", "wash"], ["tap", "plate", "fridge door"]
    _video(videos / "P01" / "videos" / "P01_01.MP4", 120, NTSC_60)
    _video(videos / "P22" / "videos" / "P22_117.MP4", 100, 50)
    rows = {
        "train": [
            ("P01_01", "00:00:00.00", "00:00:01.00", 0, 1, range(60)),
            ("P01_01", "00:00:00.50", "00:00:01.50", 1, 1, range(30, 90)),
            ("P22_117", "00:00:01.00", "00:00:02.00", 2, 0, range(50, 100)),
        ],
        "validation": [("P22_117", "00:00:00.10", "00:00:00.50", 0, 2, range(5, 25))],
    }
    expected = {}
    for split, entries in rows.items():
        cells = [
            [f"{video}_{i}", video.split("_")[0], video, "00:00:00.000", start, stop, "1", "2",
             f"{verbs[verb]} the {nouns[noun]}, gently", verbs[verb], str(verb), nouns[noun], str(noun),
             f"['{nouns[noun]}', 'hand']", f"[{noun}, 0]"]
            for i, (video, start, stop, verb, noun, _) in enumerate(entries)
        ]  # fmt: skip
        (folder / f"EPIC_100_{split}.csv").write_text(tables.to_csv(published.EPIC_COLUMNS, cells))
        expected[split] = [(video, {"verb": verb, "noun": noun}, f) for video, _, _, verb, noun, f in entries]
    for head, names in (("verb", verbs), ("noun", nouns)):
        cells = [[str(i), name, f"['{name}', '{name}s']"] for i, name in enumerate(names)]
        (folder / f"EPIC_100_{head}_classes.csv").write_text(tables.to_csv(("id", "key", "instances"), cells))
    dataset = catalog.get("epic_kitchens100")
    return Miniature(dataset, videos, folder, expected, {"verb": verbs, "noun": nouns})


def moments_in_time(videos: Path, folder: Path) -> Miniature:
    """Moments in Time v1: no headers, class ids that are not alphabetical."""
    names = ["clapping", "praying", "adult+female+speaking"]
    (folder / "moments_categories.txt").write_text(
        "".join(f"{name},{i}\n" for i, name in reversed([*enumerate(names)]))
    )
    rows = {
        "training": [("clapping", "yt-a_1"), ("praying", "flickr-4-2-0_12"), ("adult+female+speaking", "getty-x.y_3")],
        "validation": [("praying", "vine-p_8"), ("clapping", "yt-b_2")],
    }
    expected = {}
    for number, (part, entries) in enumerate(rows.items()):
        lines, split = [], part.replace("training", "train")
        expected[split] = []
        for i, (label, name) in enumerate(entries):
            lines.append(f"{label}/{name}.mp4,{label},{3 + i},0\n")
            frames = _video(videos / part / label / f"{name}.mp4", 20 + 7 * i + number, 30)
            expected[split].append((f"{label}/{name}.mp4", {"label": names.index(label)}, frames))
        (folder / f"{part}Set.csv").write_text("".join(lines))
    return Miniature(catalog.get("moments_in_time"), videos, folder, expected, {"label": names})


def something_something(videos: Path, folder: Path) -> Miniature:
    """Something-Something v2: JSON, WebM at 12 frames per second, in the folder that its archive has."""
    names = ["Pushing something so that it falls off the table", "Holding something", "Putting something on something"]
    labels = {name: str(i) for i, name in enumerate(names)}
    (folder / "something-something-v2-labels.json").write_text(json.dumps(dict(sorted(labels.items()))))
    rows = {
        "train": [
            ("78687", "holding a potato", "Holding [something]", ["a potato"], 24),
            (
                "42326",
                "putting \u00e9clair on plate",
                "Putting [something] on [something]",
                ["\u00e9clair", "plate"],
                31,
            ),
            ("100904", "pushing a cup", "Pushing [something] so that it falls off the table", ["a cup"], 18),
        ],
        "validation": [
            ("74225", "putting x on y", "Putting [something] on [something]", ["x", "y"], 16),
            ("74226", "holding a mug", "Holding [something]", ["a mug"], 33),
        ],
    }
    expected = {}
    for split, entries in rows.items():
        expected[split] = []
        for number, _, template, _, count in entries:
            frames = _video(videos / "20bn-something-something-v2" / f"{number}.webm", count, 12)
            label = names.index(template.replace("[", "").replace("]", ""))
            expected[split].append((number, {"label": label}, frames))
        content = [
            {"id": number, "label": label, "template": template, "placeholders": placeholders}
            for number, label, template, placeholders, _ in entries
        ]
        (folder / f"something-something-v2-{split}.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "something-something-v2-test.json").write_text(json.dumps([{"id": "1420"}]))
    return Miniature(catalog.get("something_something_v2"), videos, folder, expected, {"label": names})


def ucf101(videos: Path, folder: Path) -> Miniature:
    """UCF101, split 1: classes counted from 1, AVI files in a folder per class."""
    names = ["ApplyEyeMakeup", "Archery", "HandstandPushups"]
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(names, start=1)))
    expected = {"train": [], "validation": []}
    for split, file, group in (("train", "trainlist01.txt", 8), ("validation", "testlist01.txt", 1)):
        lines = []
        for i, name in enumerate(names):
            video = f"{name}/v_{name}_g{group:02d}_c01.avi"
            frames = _video(videos / "UCF-101" / video, 19 + i)
            lines.append(f"{video} {i + 1}\n" if split == "train" else f"{video}\n")
            expected[split].append((video, {"label": i}, frames))
        (lists / file).write_text("".join(lines))
    return Miniature(catalog.get("ucf101"), videos, folder, expected, {"label": names})


def hmdb51(videos: Path, folder: Path) -> Miniature:
    """HMDB51, split 1: one list per class, marks 0, 1 and 2, names with odd characters."""
    names = ["brush_hair", "kick", "kick_ball"]
    lists = folder / "testTrainMulti_7030_splits"
    lists.mkdir()
    expected = {"train": [], "validation": []}
    for i, name in enumerate(names):
        lines = []
        for mark, part in ((0, "unused"), (1, "train"), (2, "validation")):
            video = f"#20_Rhythm&clap({part})_{name}_u_nm_np1_fr_goo_{mark}.avi"
            lines.append(f"{video} {mark} \n")
            if mark:
                frames = _video(videos / name / video, 16 + 5 * i + mark, 30)
                expected[part].append((f"{name}/{video}", {"label": i}, frames))
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    return Miniature(catalog.get("hmdb51"), videos, folder, expected, {"label": names})


def custom_folder(videos: Path, folder: Path) -> Miniature:
    """A custom data set, a folder per class, in two splits; `folder` stays empty."""
    names, expected = ["cat", "dog"], {"train": [], "validation": []}
    for part, split in (("train", "train"), ("val", "validation")):
        for i, name in enumerate(names):
            for file in ("a clip.mp4", "b.webm")[: 2 if split == "train" else 1]:
                frames = _video(videos / part / name / file, 17 + 4 * i)
                expected[split].append((f"{part}/{name}/{file}", {"label": i}, frames))
    (videos / "train" / "notes.txt").write_text("no video")
    return Miniature(catalog.custom("my_folder", "folder"), videos, videos, expected, {"label": names})


def custom_csv(videos: Path, folder: Path) -> Miniature:
    """A custom data set with a CSV: two heads, segments, an absolute path, a comma in a name, a byte-order mark."""
    elsewhere = folder.parent / "elsewhere" / "far.mp4"
    _video(videos / "one, two.mp4", 100)
    _video(elsewhere, 30)
    cells = [
        ["one, two.mp4", "open", "10", "0", "1.0", "train"],
        ["one, two.mp4", "close", "9", "1", "", "train"],
        [str(elsewhere), "open", "9", "", "", "train"],
        [str(elsewhere), "close", "10", "0.2", "0.8", "val"],
    ]
    columns = ("path", "label_verb", "label_count", "start", "end", "split")
    (folder / "labels.csv").write_text(tables.to_csv(columns, cells), encoding="utf-8-sig")
    ids = [(1, 1), (0, 0), (1, 0), (0, 1)]  # "close" before "open", 9 before 10
    frames = [range(25), range(25, 100), range(30), range(5, 20)]
    entries = [
        (cell[0], {"verb": verb, "count": count}, numbers)
        for cell, (verb, count), numbers in zip(cells, ids, frames, strict=True)
    ]
    names = {"verb": ["close", "open"], "count": ["9", "10"]}
    expected = {"train": entries[:3], "validation": entries[3:]}
    return Miniature(catalog.custom("my_csv", "csv"), videos, folder, expected, names)


_WRITERS = {
    "kinetics400": kinetics,
    "moments_in_time": moments_in_time,
    "epic_kitchens100": epic_kitchens,
    "something_something_v2": something_something,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "folder": custom_folder,
    "csv": custom_csv,
}
NAMES = tuple(_WRITERS)
