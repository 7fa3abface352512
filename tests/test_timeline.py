"""Windows against index arithmetic, merged segments, subtitles as FFmpeg reads them, bounded memory."""

import json
import os
import subprocess
import sys
import types

import av
import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.helpers.small_models import random_params, small_config
from tests.helpers.videos import VARIABLE, draw_number, numbered_video, read_number, write_video
from vivit_jax import convert
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.video.decode import VideoError
from vivit_jax.predict import Predictor, timeline
from vivit_jax.predict import __main__ as program
from vivit_jax.predict.timeline import Segment

LABELS = ["打篮球", "jump --> up", "a\nb", "कूद", "e"]


class Recorder(Predictor):
    """Keeps the numbers shown in the frames of each window instead of predicting, and ranks windows by the first."""

    def __init__(self, fps=None, multi_label=(), **clip):
        clip = ClipSpec(**({"num_frames": 8, "image_size": (64, 64), "stride": 2} | clip))
        self.preprocessing = Preprocessing(clip, stored_short_side=64, stored_fps=fps)
        self.experiment = types.SimpleNamespace(evaluation=types.SimpleNamespace(spatial_views=1))
        self.model = types.SimpleNamespace(config=small_config())
        self.multi_label, self.frames, self.shapes, self._params = frozenset(multi_label), [], set(), None

    def read_frames(self, params, batch):
        self.shapes.add(batch["video"].shape)
        return np.array([[read_number(frame) for frame in clip] for clip in batch["video"][:, 0]])

    def predict_views(self, videos, top=5):
        for name, _, frames in self.run(self.read_frames, videos):
            self.frames.append(frames.tolist())
            ranked = {"label": [(str(frames[0]), 0.7), ("x", 0.6), ("y", 0.1)][:top]}
            yield name, types.SimpleNamespace(ranked=ranked)


@pytest.mark.parametrize(("count", "hop"), [(150, 0.64), (150, 0.32), (97, 0.2), (16, 0.64)])
def test_windows_are_clips_of_the_model(tmp_path, count, hop):
    """One starts at the first frame of each hop, and one ends with the video; hops in windows are the same."""
    path, kept = numbered_video(tmp_path / "a.mp4", count), list(range(0, count, 2))
    starts = [next(i for i in range(len(kept)) if kept[i] / 25 >= k * hop - 1e-9) for k in range(int(count / 25 / hop))]
    expected = [kept[i : i + 8] for i in starts if i + 8 < len(kept)] + [kept[-8:]]
    for text in (f"{hop}s", f"{hop / 0.64:g}") if hop != 0.2 else ("0.2s",):
        recorder = Recorder()
        found = list(timeline.windows(recorder, path, text))
        assert recorder.frames == expected
        assert len(recorder.shapes) == 1, "another number of rows would compile another program"
        assert [each.start for each in found] == pytest.approx([frames[0] / 25 for frames in expected], abs=1e-3)
        ends = [frames[-1] / 25 + 0.08 for frames in expected[:-1]]
        assert [each.end for each in found] == pytest.approx([*ends, count / 25], abs=1e-3)


def test_windows_of_a_variable_and_of_a_lower_frame_rate(tmp_path):
    """Frames are those that records of the data set would have, times those of the file."""
    path = write_video(tmp_path / "v.mkv", stamps=VARIABLE)
    recorder = Recorder(num_frames=3, stride=1)
    found = list(timeline.windows(recorder, path, "0.3s"))
    assert recorder.frames == [[0, 1, 2], [4, 5, 6], [11, 12, 13], [17, 18, 19]]
    seconds = np.array(VARIABLE) / 1000
    assert [each.start for each in found] == pytest.approx([seconds[f[0]] for f in recorder.frames], abs=2e-3)
    recorder = Recorder(num_frames=3, stride=1, fps=5)
    found = list(timeline.windows(recorder, numbered_video(tmp_path / "a.mp4", 50), "1"))
    assert recorder.frames == [[0, 5, 10], [15, 20, 25], [30, 35, 40], [35, 40, 45]]
    assert found[-1].end == pytest.approx(2)
    for number in range(9):  # a folder, whose frame rate is that of the records
        Image.fromarray(draw_number(number)).save(tmp_path / f"{number}.png")
    recorder = Recorder(num_frames=3, stride=1, fps=5)
    found = list(timeline.windows(recorder, tmp_path, "1"))
    assert recorder.frames == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert found[-1].end == pytest.approx(1.8)


def test_short_videos_are_looped_as_in_prediction(tmp_path):
    path, recorder = numbered_video(tmp_path / "a.mp4", 7), Recorder()
    (found,) = timeline.windows(recorder, path)
    assert recorder.frames == [[0, 2, 4, 6, 1, 3, 5, 0]]
    assert (found.start, found.end) == (0, pytest.approx(0.28))


def test_errors_name_the_value_and_the_way_out(tmp_path):
    path = numbered_video(tmp_path / "a.mp4", 7)
    for hop in ("0", "-1", "2 s", "x", "0s"):
        with pytest.raises(ValueError, match=f"hop={hop} must be a number above 0"):
            list(timeline.windows(Recorder(), path, hop))
    with pytest.raises(ValueError, match="spread over whole videos; for windows give a --stride"):
        list(timeline.windows(Recorder(sampling="segments", stride=1), path))
    recorder = Recorder(sampling="segments", stride=1, num_frames=3)
    list(timeline.windows(recorder, path, stride=3))
    assert recorder.frames == [[0, 3, 6]]


def test_labels_above_half_of_a_multi_label_head(tmp_path):
    path = numbered_video(tmp_path / "a.mp4", 16)
    (found,) = timeline.windows(Recorder(multi_label=["label"]), path)
    assert (found.label, found.probability) == ("0, x", pytest.approx(0.42))
    (found,) = timeline.windows(Recorder(), path)
    assert (found.label, found.probability) == ("0", 0.7)


def window(start, end, label, probability=0.5):
    return Segment(start, end, label, probability, [{"start": start, "end": end, "labels": {}}])


def test_adjacent_windows_of_a_label_merge_and_cover_the_video():
    """The borders are the middles between the windows: where they overlap, touch, or leave a gap."""
    found = [window(0, 4, "a", 0.9), window(2, 6, "a", 0.7), window(4, 8, "b"), window(8, 12, "a"), window(16, 20, "c")]
    merged = list(timeline.segments(iter(found)))
    assert [(each.start, each.end, each.label) for each in merged] == [
        *((0, 5, "a"), (5, 8, "b"), (8, 14, "a"), (14, 20, "c")),
    ]
    assert merged[0].probability == pytest.approx(0.8)
    assert [len(each.windows) for each in merged] == [2, 1, 1, 1]
    lazy = timeline.segments(iter([*found, None]))  # nothing is read before it is needed
    assert [next(lazy).label for _ in range(3)] == ["a", "b", "a"]


def test_a_video_that_breaks_off_has_a_timeline_up_to_there(tmp_path, monkeypatch, capsys):
    def windows(predictor, path, *_):
        if path == "broken.mp4":
            yield from (window(0, 4, "a"), window(4, 8, "b"), window(8, 12, "b"))
        raise VideoError(f"{path}: broken after 300 frames")

    options = types.SimpleNamespace(hop="1", stride=None, top=5, timeline=tmp_path, csv=False, json=True)
    monkeypatch.setattr(program.flags, "FLAGS", options)
    monkeypatch.setattr(program.timeline, "windows", windows)
    (_, problem), (_, other) = program.timelines(None, ["broken.mp4", "none.mp4"])
    assert [str(problem), str(other)] == [f"{name}.mp4: broken after 300 frames" for name in ("broken", "none")]
    record = json.loads(capsys.readouterr().out)
    assert [(each["start"], each["end"]) for each in record["segments"]] == [(0, 4), (4, 12)]
    assert {path.name for path in tmp_path.iterdir()} == {f"timeline_broken.{kind}" for kind in ("srt", "json", "png")}


def test_subtitles_are_those_that_ffmpeg_reads(tmp_path):
    found = [window(0, 1.5, LABELS[0]), window(1.5, 3661.25, LABELS[1]), window(3661.25, 3662, LABELS[2])]
    record = timeline.write(tmp_path / "a.b.mp4", found, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "timeline_a.b.json").read_text()) == record
    assert (tmp_path / "out" / "timeline_a.b.png").read_bytes().startswith(b"\x89PNG")
    with av.open(str(tmp_path / "out" / "timeline_a.b.srt")) as container:
        packets = [packet for packet in container.demux() if packet.size]
    times = [(packet.pts * packet.time_base, packet.duration * packet.time_base) for packet in packets]
    assert [tuple(map(float, each)) for each in times] == [(0, 1.5), (1.5, 3659.75), (3661.25, 0.75)]
    assert [bytes(packet).decode() for packet in packets] == ["打篮球 (50%)", "jump --> up (50%)", "a b (50%)"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config, folder = small_config(), tmp_path_factory.mktemp("timeline") / "run"
    convert.save_params(random_params(config, dtype=np.float32), folder, "orbax", config, {"label": LABELS})
    return folder


def test_windows_are_predicted_as_clips_of_their_own(checkpoint, tmp_path):
    """Each window has the labels of a file that holds its frames alone."""
    predictor, images = Predictor(checkpoint), [draw_number(i) for i in range(14)]
    options = {"codec": "ffv1", "pix_fmt": "bgr0"}
    found = list(timeline.windows(predictor, write_video(tmp_path / "a.mkv", images, **options), "0.5"))
    assert len(found) > 3
    for each in found:
        first = round(each.start * 25)
        alone = predictor(write_video(tmp_path / f"{first}.mkv", images[first : first + 4], **options))
        expected = dict(alone.ranked["label"])
        assert dict(each.windows[0]["labels"]["label"]) == pytest.approx(expected, rel=1e-4)


def long_video(path, seconds, fps=2):
    """A file of so many seconds: two seconds of video, whose packets are written again and again."""
    second = numbered_video(path.with_name("second.mp4"), 2 * fps, fps, height=96, width=128)
    with av.open(str(second)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        stamps = [(packet.pts, packet.dts) for packet in packets]
        for number in range(seconds // 2):
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.stream = out
                packet.pts, packet.dts = (round(x + number * 2 / stream.time_base) for x in (pts, dts))
                target.mux(packet)
    return path


MEASURED = """
import re, sys
from vivit_jax.predict import __main__, timeline
inner = timeline.write

def write(*arguments):
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    print("peak", int(peak[1]) >> 10, file=sys.stderr)
    return inner(*arguments)

timeline.write = write
__main__.run()
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to measure memory")
def test_command_with_two_hours_of_video_and_any_names(checkpoint, tmp_path):
    """The long video takes no more memory than the short ones before it; each file has its own outputs."""
    names = ["-dash.mp4", "x:%03d.mp4", "日本.mp4", "a/c.mp4", "b/c.mp4", "b/c.webm", os.fsdecode(b"\xff.mp4")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        numbered_video(tmp_path / "short.mp4", 20).rename(tmp_path / name)
    names += [long_video(tmp_path / "long.mp4", 7200).name, "none.mp4"]
    command = [sys.executable, "-c", MEASURED, f"--workdir={checkpoint}", "--timeline=out", "--hop=30s", "--json"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300, "env": environment}
    done = subprocess.run([*command, "--", *names], **run)
    assert "1 of 9 files could not be read" in done.stderr
    assert "Traceback" not in done.stderr
    *records, missing = map(json.loads, done.stdout.splitlines())
    assert missing == {"file": "none.mp4", "error": "none.mp4: no such file"}
    assert [record["file"] for record in records] == names[:-1]
    assert records[-1]["segments"][-1]["end"] == pytest.approx(7200, abs=0.3)
    assert sum(len(each["windows"]) for each in records[-1]["segments"]) == 240 + 1
    for suffix in (".png", ".json", ".srt"):
        assert len(list((tmp_path / "out").glob(f"timeline_*{suffix}"))) == len(names) - 1, "one replaced another"
    *_, before, after = (int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("peak"))
    assert after < before + 100, "MiB"
    assert after < 1536
