"""Encoding: measured and requested frame rates, colours as of FFmpeg's filters, real clips to records."""

import fractions

import av
import numpy as np
import pytest

from tests.helpers.videos import ALL, DOUBLED, VARIABLE, encode_segment, read_video, shown_numbers, write_video
from vivit_jax.data import build
from vivit_jax.data.records.split import open_split
from vivit_jax.data.video import decode, encode


def test_frame_rate_and_repaired_stamps(tmp_path):
    steady = encode_segment(write_video(tmp_path / "steady.mkv", fps=fractions.Fraction(30_000, 1001)))
    assert (steady.fps, steady.varies, steady.repaired) == (pytest.approx(30_000 / 1001), False, 0)
    variable = encode_segment(write_video(tmp_path / "v.mp4", stamps=VARIABLE))
    assert (variable.fps, variable.varies, variable.repaired) == (pytest.approx(25), True, 0)
    doubled = encode_segment(write_video(tmp_path / "d.mkv", stamps=DOUBLED, options={"bf": "0"}))
    assert doubled.repaired == 2
    times = [round(frame.time, 3) for frame in decode.iterate_frames(tmp_path / "d.mkv")]
    assert times[2:7] == [0.08, 0.12, 0.14, 0.2, 0.24], "the stamps after a repeated one are used again"


def test_requested_frame_rate(tmp_path):
    """The frame for each sampling time is the last one at or before it; none is stored twice."""
    path = write_video(tmp_path / "v.mp4")
    for fps, expected in ((10, [0, 2, 5, 7, 10, 12, 15, 17]), (12.5, ALL[::2]), (25, ALL), (60, ALL), (1, [0])):
        segment = encode_segment(path, encode.EncodeOptions(None, 90, fps))
        assert shown_numbers(segment) == expected, fps
        assert segment.fps == min(fps, 25)
    late = encode_segment(path, encode.EncodeOptions(None, 90, 10), segment=(0.2, 0.6))
    assert shown_numbers(late) == [5, 7, 10, 12], "counted from the segment's first frame"
    variable = encode_segment(
        write_video(tmp_path / "variable.mp4", stamps=VARIABLE), encode.EncodeOptions(None, 90, 5)
    )
    shown = [max(i for i in ALL if VARIABLE[i] <= 200 * k) for k in range(7)]
    assert shown_numbers(variable) == sorted(set(shown))


@pytest.mark.parametrize(
    "fault", [{"quality": 0}, {"quality": 96}, {"fps": 0.0}, {"fps": float("nan")}, {"short_side": 0}]
)
def test_option_limits(fault):
    (name,) = fault
    with pytest.raises(ValueError, match=f"^{name}="):
        encode.EncodeOptions(**({"short_side": 256} | fault))


def by_filters(path):
    """Decodes RGB frames [T, H, W, 3] with FFmpeg's filter graph alone."""
    frames = []
    with av.open(str(path)) as container:
        graph = av.filter.Graph()
        source = graph.add_buffer(template=container.streams.video[0])
        scale = graph.add("scale", "flags=bicubic+accurate_rnd+full_chroma_int")
        form, sink = graph.add("format", "rgb24"), graph.add("buffersink")
        graph.link_nodes(source, scale, form, sink).configure()
        for frame in container.decode(video=0):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
    return np.stack(frames)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "gray", "yuv444p", "yuvj444p"])
def test_colours(tmp_path, pix_fmt):
    """Decoded colours match the original pictures and FFmpeg's most accurate filters."""
    colours = [(250, 20, 30), (20, 200, 40), (30, 40, 220), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    images = [np.full((48, 64, 3), colour, np.uint8) for colour in colours]
    path = write_video(tmp_path / "v.mkv", images, pix_fmt=pix_fmt)
    decoded = read_video(path).frames.mean(axis=(1, 2))
    np.testing.assert_allclose(decoded, by_filters(path).mean(axis=(1, 2)), atol=4)
    if pix_fmt != "gray":
        np.testing.assert_allclose(decoded, colours, atol=6)


def test_real_clips_become_records(shared, tmp_path):
    """One class per clip: the number of frames and the colours match FFmpeg's."""
    clips = sorted(path for path in (shared / "videos").iterdir() if path.suffix in (".mp4", ".avi", ".mkv"))
    assert len(clips) == 9
    lines = ["path,label,split"] + [f"{path.name},{path.stem},train" for path in clips]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    records = build.build(
        "clips",
        shared / "videos",
        tmp_path,
        tmp_path,
        build.BuildOptions(num_workers=0, progress=False, kind="csv", short_side=128),
    )
    split = open_split(records, "train")
    assert split.video_id.size == 9
    from vivit_jax.data.host_tf import tf
    from vivit_jax.data.records import reader

    read = tf.function(reader.record_reader(split), autograph=False)
    for path in clips:
        video = split.labels["label"].tolist().index(split.class_names["label"].index(path.stem))
        expected = by_filters(path)
        assert split.num_frames[video] == len(expected)
        assert min(split.height[video], split.width[video]) == 128
        stored = read(tf.constant(video, tf.int64), tf.constant([0, len(expected) - 1], tf.int64)).numpy()
        np.testing.assert_allclose(stored.mean(axis=(1, 2)), expected[[0, -1]].mean(axis=(1, 2)), atol=4)


def test_colour_edges_of_ten_bits(tmp_path):
    """Edges between chroma samples stay sharp, wherever the file places the samples."""
    image = np.repeat(np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8), 16, axis=0)
    images = [np.broadcast_to(image, (48, 64, 3)).copy()] * 3
    path = write_video(tmp_path / "v.mp4", images, pix_fmt="yuv420p10le", options={"crf": "1"})
    decoded = read_video(path).frames.astype(int)
    assert np.abs(decoded - images).max() <= 6


def test_colour_bars_of_ten_bits(shared):
    """Each bar, 32 pixels wide, has one colour up to its edges."""
    bars = read_video(shared / "cases" / "bars_10bit.mp4").frames[0, :32, :192].reshape(32, 6, 32, 3).astype(int)
    assert np.abs(bars - bars[:, :, 15:16]).max() <= 3


def test_tone_mapping(tmp_path, caplog):
    """PQ's diffuse white of 203 nits, 58 % of the signal, becomes white; black stays black."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = 16, 9, 9
        stream.codec_context.color_range = 1
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, value in zip(frame.planes, (64 + round(0.58 * 876), 512, 512), strict=True):
            samples = np.full((plane.height, plane.line_size // 2), value, np.uint16)
            if value > 512:
                samples[: plane.height // 2] = 64
            plane.update(samples.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    dark, bright = read_video(path).frames[0, [8, 40]].mean(axis=(1, 2))
    assert dark < 3
    if "is not tone-mapped" in caplog.text:
        pytest.skip("FFmpeg is too old to tone-map")
    assert bright > 245
