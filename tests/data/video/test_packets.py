"""Which part of a file is a video: its length by time stamps, its beginning, its damaged end, its name."""

import re

import av
import numpy as np
import pytest

from tests.helpers.videos import ALL, COUNT, draw_number, encode_segment, shown_numbers, write_video
from vivit_jax.data.video import decode

# Files of ../shared/cases: number of frames, or the reason for which they are rejected.
CASES = {
    "outseek.mkv": 177,
    "vfr.webm": 120,
    "avi_dropped_frames.avi": 70,
    "ts_tail_libx264.ts": 100,
    "copyinkf.mp4": 177,
    **{f"case9_cg_nonkey{suffix}": 76 for suffix in (".mkv", ".mp4", ".ts")},
    **{f"case9_cg_key2{suffix}": 76 for suffix in (".mkv", ".mp4", ".ts")},
    **{f"case9_cg_key2end{suffix}": 40 for suffix in (".mkv", ".mp4", ".ts")},
    "case9_og_key2.mkv": 76,
    "case9_og_key2.mp4": 76,
    "case9_og_nonkey.mp4": 76,
    "case9_cg_afterkey.mkv": 67,
    "case9_og_afterkey.mkv": 52,
    "case11_base.avi": 100,
    "case11_plus20.avi": "cut short: 100 frames of about 120",
    "case12_bf.avi": 100,
    "cut_two_streams.flv": "cut short: 84 frames of about 250",
    "cut_two_streams.mkv": "cut short",
    "cut_two_streams.webm": "cut short",
}
X264 = {"preset": "veryfast", "g": "8", "bf": "2"}
# Frames 40 ms apart, then 200 ms.
SLOWING = [40 * i for i in range(10)] + [400 + 200 * i for i in range(10)]


@pytest.mark.parametrize("name", CASES)
def test_cases(shared, name):
    expected = CASES[name]
    if isinstance(expected, int):
        assert len(list(decode.iterate_frames(shared / "cases" / name))) == expected
    else:
        with pytest.raises(decode.VideoError, match=expected):
            list(decode.iterate_frames(shared / "cases" / name))


def remux(source, target, first=0, shift=0.0, sound=0, options=None):
    """Copies the video packets from number `first` on, `shift` seconds later, beside `sound` seconds of silence."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options or {}) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        packets = [packet for packet in reader.demux(video=0) if packet.size][first:]
        if sound:
            audio = writer.add_stream("libopus" if target.suffix == ".webm" else "mp3", rate=48000, layout="mono")
            for number in range(sound * 10):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 48000, number * 4800
                packets += audio.encode(silence)
            packets += audio.encode()
        for packet in packets:
            if packet.stream.type == "video":
                ticks = round(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            writer.mux(packet)
    return target


@pytest.mark.parametrize(
    ("suffix", "open_gop"), [(".mp4", 0), (".mkv", 0), (".ts", 0), (".h264", 0), (".mp4", 1), (".mkv", 1)]
)
def test_begins_between_key_frames(tmp_path, caplog, suffix, open_gop):
    whole = write_video(tmp_path / "whole.mp4", options=X264 | {"x264-params": f"open-gop={open_gop}:scenecut=0"})
    segment = encode_segment(remux(whole, tmp_path / f"v{suffix}", first=3))
    numbers = shown_numbers(segment)
    assert numbers == ALL[numbers[0] :]
    assert numbers[0] in (6, 7, 8)  # an open group of pictures has frames before its key frame
    assert re.search(r"begins between key frames: its first 0\.\d\d s \([45] frames\) .*left out", caplog.text)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".flv", ".ts", ".mp4", ".avi"])
def test_sound_is_longer_or_begins_earlier(tmp_path, suffix):
    """The video is whole, whether it ends before the sound or begins after it."""
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    whole = write_video(tmp_path / f"whole{suffix}", codec=codec)
    for shift in (0, 2):
        path = remux(whole, tmp_path / f"v{shift}{suffix}", shift=shift, sound=4)
        assert shown_numbers(encode_segment(path)) == ALL, shift


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "libvpx"), (".ts", "libx264"), (".wmv", "wmv2"), (".flv", "flv")]
)
def test_variable_rate(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"v{suffix}", stamps=SLOWING, codec=codec, bit_rate=2_000_000)
    assert shown_numbers(encode_segment(path)) == ALL


def test_dropped_frames_of_avi(tmp_path):
    """The header counts the empty chunks in place of frames that a capture program dropped."""
    path = write_video(tmp_path / "v.avi", codec="mjpeg", pix_fmt="yuvj420p", stamps=SLOWING)
    frames = list(decode.iterate_frames(path))
    assert len(frames) == COUNT
    assert frames[-1].time > 2


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".flv", "flv"), (".mkv", "libx264"), (".webm", "libvpx"), (".avi", "mpeg4"), (".wmv", "wmv2"), (".mp4", "mpeg4")],
)
def test_cut_short_with_sound(tmp_path, suffix, codec):
    images = [draw_number(i, 48, 64) for i in range(100)]
    whole = write_video(tmp_path / f"whole{suffix}", images, codec=codec, bit_rate=2_000_000)
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    data = remux(whole, tmp_path / f"v{suffix}", sound=4, options=options).read_bytes()
    for share in (0.4, 0.8):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(decode.VideoError, match=r"cut short: \d+ frames of about (9\d|10\d)|broken after"):
            list(decode.iterate_frames(path))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_damaged_end(tmp_path, caplog, suffix):
    """Up to a tenth of the length may be damaged: what comes before it is the video."""
    noise = np.random.default_rng(0).integers(0, 30, (40, 48, 64, 3))
    images = [(draw_number(i, 48, 64) + noise[i]).astype(np.uint8) for i in range(40)]
    path = write_video(tmp_path / f"v{suffix}", images, options={"g": "1", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for bad, kept in ((39, 39), (37, 37), (20, None)):
        packet = packets[bad]
        start = data.index(packet[-60:]) if suffix != ".ts" else data.index(packet[-100:-40])
        path.write_bytes(data[: start + 5] + bytes(40) + data[start + 45 :])
        caplog.clear()
        segment = encode_segment(path)
        if kept:
            assert shown_numbers(segment) == list(range(kept)), bad
            assert "damaged or missing and left out" in caplog.text
        else:
            assert f"broken after {bad} frames" in segment


@pytest.mark.parametrize(
    "name",
    ["a:b.mp4", "http:x.mp4", "concat:x|y.mp4", "clip%03d.mp4", "x%02d.gif", "a#b?c*[1].mp4", "-x.mp4", "\udcff.mp4"],
)
def test_any_name(tmp_path, monkeypatch, name):
    """FFmpeg takes no name for a protocol or a pattern."""
    monkeypatch.chdir(tmp_path)
    codec = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
    write_video(tmp_path / f"plain{name[-4:]}", **codec).rename(name)
    assert shown_numbers(encode_segment(name)) == ALL


def test_encrypted(tmp_path):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb"}
    path = write_video(tmp_path / "v.mp4", muxer=keys | {"encryption_kid": "a7e61c373e219033c21091fa607bf3b8"})
    assert re.search("v.mp4: encrypted", encode_segment(path))
    data = bytearray(write_video(tmp_path / "v.ts").read_bytes())
    for start in range(0, len(data), 188):
        if data[start + 1] & 31 == 1:  # packets of the video
            begin = start + 4 + (1 + data[start + 4] if data[start + 3] & 0x20 else 0)
            data[start + 3] |= 0x80
            data[begin : start + 188] = np.random.default_rng(start).bytes(start + 188 - begin)
    (tmp_path / "v.ts").write_bytes(data)
    assert re.search("v.ts: encrypted", encode_segment(tmp_path / "v.ts"))
