"""Some sixty kinds of file: each becomes a record with exactly its frames, or a reject with the right reason.

The frames show their numbers in binary, which reveals a frame that is missing, repeated, misplaced or concealed.
"""

import os
import re
import struct

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import ALL, COUNT, DOUBLED, VARIABLE, draw_number, encode_segment, shown_numbers, write_video
from vivit_jax.data.video import decode


def patched(path, at, old, new):
    """Replaces the first bytes `old` after the marker `at`."""
    data = path.read_bytes()
    start = data.index(old, data.index(at))
    path.write_bytes(data[:start] + new + data[start + len(old) :])
    return path


def cut(path, share, start=0.0):
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * start) : int(len(data) * share)])
    return path


def add_audio(container, seconds):
    stream = container.add_stream("libopus" if "webm" in container.format.name else "aac", rate=48000, layout="mono")

    def mux():
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        for second in range(seconds):
            sound.pts = second * 48000
            container.mux(stream.encode(sound))
        container.mux(stream.encode())

    return mux


def rotated(path, turns):
    """A video stored rotated, whose matrix rotates it upright by `turns` quarter turns counterclockwise."""
    write_video(path, [np.ascontiguousarray(np.rot90(draw_number(i, 48, 64), -turns)) for i in ALL])
    one, minus, zero = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00", bytes(4)
    last = b"\x40\x00\x00\x00"
    a, b, c, d = {1: (zero, minus, one, zero), 2: (minus, zero, zero, minus), 3: (zero, one, minus, zero)}[turns]
    identity = one + zero + zero + zero + one + zero + zero + zero + last
    return patched(path, b"tkhd", identity, a + b + zero + c + d + zero + zero + zero + last)


def edit_list(path):
    """A video whose edit list starts the presentation 5 frames later."""
    write_video(path, options={"bf": "0", "g": "1"}, muxer={"use_editlist": "1", "movflags": "faststart"}, stamps=None)
    data = path.read_bytes()
    start = data.index(b"elst") + 12
    duration, media_time = struct.unpack(">ii", data[start : start + 8])
    scale = struct.unpack(">i", data[data.index(b"mdhd") + 16 :][:4])[0]
    new = struct.pack(">ii", duration * 15 // 20, media_time + scale * 5 // 25)
    path.write_bytes(data[:start] + new + data[start + 8 :])
    return path


def raw_stream(path, *parts):
    """Concatenated encoded streams without a container."""
    path.write_bytes(
        b"".join(write_video(path.with_name(f"part{i}.h264"), part).read_bytes() for i, part in enumerate(parts))
    )
    return path


def glued(path):
    """Two concatenated recordings: the time stamps begin again."""
    first = write_video(path, [draw_number(i, 48, 64) for i in range(10)]).read_bytes()
    second = write_video(path, [draw_number(i, 48, 64) for i in range(10, 20)]).read_bytes()
    path.write_bytes(first + second)
    return path


def latin_title(path):
    """A video with a tag that is not UTF-8."""
    write_video(path, muxer={"movflags": "faststart"})
    with av.open(str(path)) as source, av.open(str(path.with_suffix(".mkv")), "w") as copy:
        copy.metadata["title"] = "Bruecke in Koeln"
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    copied = path.with_suffix(".mkv")
    return patched(copied, b"Bruecke", b"Bruecke", b"Br\xfc\xfccke")


def with_streams(path, kind):
    """A video with another stream: longer sound, a broken second video, or a cover picture before it."""
    with av.open(str(path), "w") as container:
        if kind == "cover":
            cover = container.add_stream("png" if path.suffix == ".mp4" else "mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24" if path.suffix == ".mp4" else "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic.value
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"crf": "10", "preset": "ultrafast"}
        second = container.add_stream("mpeg4", rate=25) if kind == "second" else None
        if second:
            second.width, second.height, second.pix_fmt = 32, 32, "yuv420p"
        audio = add_audio(container, 5) if kind == "sound" else None
        if kind == "cover":
            container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), "rgb24")))
            container.mux(cover.encode())
        for number in ALL:
            container.mux(video.encode(av.VideoFrame.from_ndarray(draw_number(number, 48, 64), "rgb24")))
            if second:
                for packet in second.encode(av.VideoFrame.from_ndarray(draw_number(number, 32, 32), "rgb24")):
                    broken = av.Packet(b"\xff" * packet.size)
                    broken.stream, broken.pts, broken.dts, broken.time_base = (
                        second, packet.pts, packet.dts, packet.time_base,
                    )  # fmt: skip
                    container.mux(broken)
        container.mux(video.encode())
        if audio:
            audio()
    return path


def audio_only(path):
    with av.open(str(path), "w") as container:
        add_audio(container, 1)()
    return path


def text(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path, form):
    Image.fromarray(draw_number(3, 48, 64)).save(path, form)
    return path


def noisy():
    """Numbered frames with noise, so that each takes some bytes."""
    noise = np.random.default_rng(0).integers(0, 30, (COUNT, 48, 64, 3))
    return [(draw_number(i, 48, 64) + noise[i]).astype(np.uint8) for i in ALL]


def bit_rot(path, seed):
    write_video(path, noisy(), muxer=FAST)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    start = bytes(data).index(b"mdat") + 700
    data[np.random.default_rng(seed).integers(start, len(data), 12)] ^= 0x5A
    path.write_bytes(bytes(data))
    return path


def symlink(path):
    path.symlink_to(path.with_name("gone"))
    return path


def folder(path):
    path.mkdir()
    return path


def unreadable(path):
    write_video(path).chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user can read all files")
    return path


FAST = {"movflags": "faststart"}

# Files that become records: name -> (function that writes it, numbers that its frames show).
RECORDS = {
    "plain.mp4": (write_video, ALL),
    "b_frames.mp4": (lambda p: write_video(p, options={"preset": "medium", "bf": "3"}), ALL),
    "variable.mp4": (lambda p: write_video(p, stamps=VARIABLE), ALL),
    "rotated_90.mp4": (lambda p: rotated(p, 1), ALL),
    "rotated_180.mp4": (lambda p: rotated(p, 2), ALL),
    "rotated_270.mp4": (lambda p: rotated(p, 3), ALL),
    "no_counts.webm": (lambda p: write_video(p, codec="libvpx", options={"crf": "4"}, muxer={"live": "1"}), ALL),
    "edit_list.mp4": (edit_list, ALL[5:]),
    "late_start.ts": (lambda p: write_video(p, stamps=[100_000 + 40 * i for i in ALL]), ALL),
    "negative_start.mkv": (
        lambda p: write_video(p, stamps=[40 * i - 400 for i in ALL], muxer={"avoid_negative_ts": "disabled"}),
        ALL,
    ),
    # An edit list starts the presentation at 0.
    "negative_start.mp4": (lambda p: write_video(p, stamps=[40 * i - 400 for i in ALL], options={"g": "1"}), ALL[10:]),
    "doubled_stamps.mkv": (lambda p: write_video(p, stamps=DOUBLED, options={"bf": "0"}), ALL),
    "no_container.mp4": (lambda p: raw_stream(p, None), ALL),
    "size_change.h264": (
        lambda p: raw_stream(
            p, [draw_number(i, 48, 64) for i in range(10)], [draw_number(i, 64, 96) for i in range(10, 20)]
        ),
        ALL,
    ),
    "odd.mp4": (lambda p: write_video(p, [draw_number(i, 49, 67)[:47, :65] for i in ALL], pix_fmt="yuv444p"), ALL),
    "grey.mp4": (lambda p: write_video(p, pix_fmt="gray"), ALL),
    "grey.mkv": (lambda p: write_video(p, codec="ffv1", pix_fmt="gray16le"), ALL),
    "one_frame.mp4": (lambda p: write_video(p, [draw_number(77, 48, 64)]), [77]),
    "one_frame.mkv": (lambda p: write_video(p, [draw_number(78, 48, 64)]), [78]),
    "ten_bit.mp4": (lambda p: write_video(p, pix_fmt="yuv420p10le"), ALL),
    "full_range.mp4": (lambda p: write_video(p, pix_fmt="yuvj420p"), ALL),
    "alpha.mov": (lambda p: write_video(p, codec="png", pix_fmt="rgba"), ALL),
    "alpha.mkv": (lambda p: write_video(p, codec="ffv1", pix_fmt="yuva420p"), ALL),
    "palette.gif": (lambda p: write_video(p, codec="gif", pix_fmt="rgb8"), ALL),
    "gif_named.mp4": (
        lambda p: os.rename(write_video(p.with_suffix(".gif"), codec="gif", pix_fmt="rgb8"), p) or p,
        ALL,
    ),
    "interlaced.mp4": (lambda p: write_video(p, options={"x264-params": "tff=1"}), ALL),
    "latin_title.mp4": (latin_title, ALL),
    "wide.mp4": (lambda p: write_video(p, [draw_number(i, 16, 1024) for i in ALL]), ALL),
    "tall.mp4": (lambda p: write_video(p, [draw_number(i, 1024, 16) for i in ALL]), ALL),
    "webm_named.mp4": (lambda p: os.rename(write_video(p.with_suffix(".webm"), codec="libvpx"), p) or p, ALL),
    "b_frames.avi": (lambda p: write_video(p, codec="mpeg4", max_b_frames=2, bit_rate=2_000_000), ALL),
    "b_frames_h264.avi": (lambda p: write_video(p, options={"preset": "medium", "bf": "2"}), ALL),
    "motion_jpeg.avi": (lambda p: write_video(p, codec="mjpeg", pix_fmt="yuvj420p"), ALL),
    "flash.flv": (write_video, ALL),
    "mpeg2.mpg": (lambda p: write_video(p, codec="mpeg2video", bit_rate=2_000_000), ALL),
    "long_sound.mkv": (lambda p: with_streams(p, "sound"), ALL),
    "long_sound.mp4": (lambda p: with_streams(p, "sound"), ALL),
    "broken_second.mkv": (lambda p: with_streams(p, "second"), ALL),
    "cover_first.mp4": (lambda p: with_streams(p, "cover"), ALL),
    "cut_at_half.ts": (lambda p: cut(write_video(p), 0.5), slice(0, None)),
    "begins_between_key_frames.ts": (
        lambda p: cut(write_video(p, options={"g": "8"}), 1.0, start=0.1),
        slice(None, COUNT),
    ),
}
# Files that become rejects: name -> (function that writes it, part of the reason).
REJECTS = {
    "empty.mp4": (lambda p: text(p, b""), r"the file is empty \(0 bytes\)"),
    "no_moov.mp4": (
        lambda p: text(write_video(p), p.read_bytes().partition(b"moov")[0]),
        "not a video that can be read",
    ),
    "random.mp4": (lambda p: text(p, np.random.default_rng(0).bytes(9999)), "not a video that can be read"),
    "page.mp4": (lambda p: text(p, "<!DOCTYPE html><html><body>Video unavailable"), "not a video that can be read"),
    "text.mp4": (lambda p: text(p, "hello\n" * 99), "not a video that can be read|no video stream"),
    "subtitles.mp4": (lambda p: text(p, "1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 9), "no video stream in it"),
    "audio.mp4": (audio_only, "no video stream in it"),
    "third.mp4": (lambda p: cut(write_video(p, noisy(), muxer=FAST), 0.33), "cut short: [1-9] frames of about 20"),
    "two_thirds.mp4": (lambda p: cut(write_video(p, noisy(), muxer=FAST), 0.66), "cut short: 1. frames of about 20"),
    "first_frame.mp4": (lambda p: cut(write_video(p, muxer=FAST), 0.5), "no frames could be decoded"),
    "half.mkv": (lambda p: cut(write_video(p, noisy()), 0.5), "cut short: [0-9]+ frames of about 20"),
    "half.avi": (lambda p: cut(write_video(p, noisy(), codec="mpeg4"), 0.5), "cut short"),
    "huge.y4m": (
        lambda p: text(p, "YUV4MPEG2 W60000 H60000 F25:1 C420jpeg\nFRAME\n" + "x" * 99),
        "not a video|no frames",
    ),
    "huge.gif": (
        lambda p: patched(write_video(p, codec="gif", pix_fmt="rgb8"), b"GIF", b"\x40\x00\x30\x00", b"\xff" * 4),
        "broken|no frames|not a video",
    ),
    "too_long_for_jpeg.mkv": (
        lambda p: write_video(p, [np.zeros((2, 65_536, 3), np.uint8)], codec="ffv1"),
        "65536 x 2 pixels; a JPEG has at most 65500 a side",
    ),
    "folder.mp4": (folder, "a folder, not a file"),
    "link.mp4": (symlink, "a link to a file that is not there"),
    "unreadable.mp4": (unreadable, "Permission denied"),
    "picture.mp4": (lambda p: picture(p, "JPEG"), "a picture, not a video"),
    "drawing.mp4": (lambda p: picture(p, "PNG"), "a picture, not a video"),
    "list.mp4": (
        lambda p: text(p, f"ffconcat version 1.0\nfile {write_video(p.with_name('l.mp4')).name}\n"),
        "a list of other files",
    ),
    "playlist.mp4": (
        lambda p: text(p, f"#EXTM3U\n#EXTINF:1,\n{write_video(p.with_name('l.ts')).name}\n#EXT-X-ENDLIST\n"),
        "a list of other files|not a video",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_record(tmp_path, name):
    make, expected = RECORDS[name]
    path = make(tmp_path / name)
    segment = encode_segment(path)
    assert not isinstance(segment, str), segment
    numbers = shown_numbers(segment)
    if isinstance(expected, slice):
        # Consecutive frames, from the first or to the last.
        assert len(numbers) >= 4
        assert numbers == ALL[numbers[0] : numbers[-1] + 1]
        assert numbers[0] == 0 if expected.start == 0 else numbers[-1] == COUNT - 1
    else:
        assert numbers == expected
    times = [frame.time for frame in decode.iterate_frames(path)]
    assert times[0] == 0
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("name", REJECTS)
def test_reject(tmp_path, name):
    make, reason = REJECTS[name]
    path = make(tmp_path / name)
    result = encode_segment(path)
    assert isinstance(result, str)
    assert str(path) in result
    assert re.search(reason, result), result


@pytest.mark.parametrize("lost", [0.3, 0.6, 0.95])
def test_packets_lost(tmp_path, lost):
    """A broadcast with lost packets: the frames before the hole and from the next key frame on, or a reject."""
    data = write_video(tmp_path / "v.ts", noisy(), options={"preset": "medium", "bf": "2", "g": "5"}).read_bytes()
    start = int(len(data) // 188 * lost) * 188
    (tmp_path / "v.ts").write_bytes(data[:start] + data[start + 188 :])
    result = encode_segment(tmp_path / "v.ts")
    if isinstance(result, str):
        assert re.search("broken after|cut short", result)
    else:
        numbers = shown_numbers(result)
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= 0.9 * COUNT - 1


def test_concatenated_recordings(tmp_path):
    """The stamps begin again at the second recording; the last packets of the first may be incomplete."""
    path = glued(tmp_path / "v.ts")
    numbers = shown_numbers(encode_segment(path))
    assert numbers == sorted(set(numbers))
    assert set(ALL) - set(numbers) <= {8, 9}
    assert (np.diff([frame.time for frame in decode.iterate_frames(path)]) > 0.03).all()


@pytest.mark.parametrize("seed", range(6))
def test_bit_rot(tmp_path, seed):
    """No concealed frame passes for a recorded one."""
    result = encode_segment(bit_rot(tmp_path / "v.mp4", seed))
    if isinstance(result, str):
        assert "broken after" in result or "cut short" in result
    else:
        assert shown_numbers(result) == ALL
