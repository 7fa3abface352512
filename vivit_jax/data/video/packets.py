"""Packets of a video stream: which of them can be decoded, and how much of the video is missing."""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import av

# What PyAV raises on damaged files: FFmpeg's errors, and its own on invalid values.
DAMAGE = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError)
# Matroska's tag of one stream, named DURATION or DURATION-eng.
_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)$")
# Where time stamps jump by this many seconds or more, another recording begins, as in FFmpeg (`dts_delta_threshold`).
_DISCONTINUITY = 10.0
# FFmpeg takes the length of these from the last time stamps in the file: they announce none.
_UNANNOUNCED = {"mpegts", "mpeg", "ogg"}
# What marks a file as encrypted: sample entries of MP4, ContentEncryption of Matroska, header objects of ASF, and the
# scrambling bits of consecutive packets (MPEG-TS) or of a packet (MPEG-PS).
_ENCRYPTION = {
    "mp4": rb"encv|drmi",
    "matroska": rb"\x6d\x80.{1,9}\x62\x40.{1,60}\x50\x35",
    "asf": rb"\xfb\xb3\x11\x22\x23\xbd\xd2\x11\xb4\xb7\x00\xa0\xc9\x55\xfc\x6e"
    rb"|\x14\xe6\x8a\x29\x22\x26\x17\x4c\xb9\x35\xda\xe0\x7e\xe9\x28\x9c",
    "mpegts": rb"(G..[\x80-\xff].{184}(.{4})?){3}",
    "mpeg": rb"\x00\x00\x01[\xe0-\xef]..[\x90-\xbf]",
}
_SEARCHED = 1 << 22
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def reason(error: Exception) -> str:
    """Returns the message of an error."""
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def is_encrypted(file: Path, form: str) -> bool:
    """Returns whether a file of FFmpeg's format `form` that cannot be decoded has the marks of an encrypted one."""
    with open(file, "rb") as opened:
        head = opened.read(_SEARCHED)
        opened.seek(max(0, file.stat().st_size - _SEARCHED))  # the header of an MP4 may be at its end
        parts = head, opened.read()
    patterns = [pattern for name, pattern in _ENCRYPTION.items() if name in form.split(",")]
    return any(re.search(pattern, part, re.DOTALL) for pattern in patterns for part in parts)


class Packets:
    """Decodes a video stream and measures what is missing; times are seconds, as in the stream."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, fps: float):
        self._container, self._stream, self._step = container, stream, 1.0 / fps
        self._form = set(container.format.name.split(","))
        # AVI and ASF have no presentation times, and FFmpeg guesses wrong for B-frames; decoding times are right.
        self._by_dts = not self._form.isdisjoint(("avi", "asf"))
        tags = (_TAG.match(text) for key, text in stream.metadata.items() if key.split("-")[0] == "DURATION")
        self._tag = next(tags, None) if "matroska" in self._form else None
        # Where the length of each stream is known, the others need not be read.
        self._alone = bool(self._tag or "avi" in self._form or ("mp4" in self._form and stream.duration))
        self.skipped = 0  # frames before the first key frame, which cannot be decoded
        self.problem: str | None = None  # why decoding ended early
        self.holes = 0.0  # seconds between damaged packets and the next key frame
        self._waiting = True  # for the first key frame
        self._packets: list[float] = []  # time stamps, without what an edit list leaves out
        self._frames: list[float] = []  # time stamps of decoded frames
        self._count, self._stamp = 0, None  # packets; time stamp of the last
        self._stamped = False  # whether any packet has a time stamp; raw streams have none
        self._ends: dict[int, float] = {}  # of each stream

    def stamp(self, item: av.Packet | av.VideoFrame) -> float | None:
        """Returns the time stamp of a packet or frame."""
        stamp = item.dts if self._by_dts else item.pts
        return None if stamp is None else float(stamp * self._stream.time_base)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yields the decoded frames in order of display, up to the first damaged one."""
        packets, begun = self._read(), False
        for packet in packets:
            try:
                frames = packet.decode()
            except DAMAGE as error:
                if not self.skipped or begun:
                    self.problem = reason(error)
                    # Earlier frames that wait for their turn are complete.
                    limit = -math.inf if packet.pts is None else packet.pts
                    frames = [frame for frame in self._flush() if frame.pts is not None and frame.pts < limit]
                else:  # the first frames refer to ones before the beginning
                    self._stream.codec_context.flush_buffers()
                    self.skipped, self._waiting, frames = self.skipped + 1, True, []
            for frame in frames:
                if frame.is_corrupt:
                    self.problem = "a damaged frame"
                    break
                begun = True
                yield frame
            if self.problem:
                break
        else:
            if self.problem:  # the file ends too early
                yield from self._flush()
        for _ in packets:  # measures what is left
            pass

    def _flush(self) -> list[av.VideoFrame]:
        try:
            return self._stream.codec_context.decode(None)
        except DAMAGE:
            return []

    def _read(self) -> Iterator[av.Packet]:
        """Yields the packets of the stream from the first key frame on, and an empty one at the end.

        Leaves out those from a damaged one up to the next key frame: FFmpeg would repeat other frames in their place.
        """
        hole, held = 0, []
        try:
            for packet in self._container.demux(*[self._stream] * self._alone):
                previous = self._stamp
                if packet.size:
                    self._measure(packet)
                if packet.stream.index != self._stream.index:
                    continue
                if packet.is_keyframe and packet.size:
                    self._waiting, held = False, []
                if not packet.size:
                    if packet.dts is not None:
                        continue  # stands for a frame that is shown again
                    if self._waiting and len(held) == self.skipped:  # some formats mark no key frames at all
                        self.skipped = 0
                        yield from held
                elif self._waiting and not packet.is_keyframe:
                    self.skipped += 1
                    held += [] if packet.is_corrupt else [packet]
                    continue
                elif packet.is_corrupt or (hole and not packet.is_keyframe):
                    hole += 1
                    continue
                elif hole:
                    gap = self._stamp - previous - self._step
                    self.holes, hole = self.holes + hole * self._step + (gap if 0 < gap < _DISCONTINUITY else 0.0), 0
                yield packet
        except DAMAGE as error:
            self.problem = self.problem or reason(error)

    def _measure(self, packet: av.Packet) -> None:
        duration = float(packet.duration * packet.time_base) if packet.duration else self._step
        stamp = None if packet.pts is None else float(packet.pts * packet.time_base)
        if packet.stream.index == self._stream.index:
            stamp, self._count = self.stamp(packet), self._count + 1
            self._stamped |= stamp is not None
            if stamp is None:
                stamp = 0.0 if self._stamp is None else self._stamp + self._step
            self._stamp = stamp
            if not packet.is_discard:
                self._packets.append(stamp)
        if stamp is not None:
            self._ends[packet.stream.index] = max(self._ends.get(packet.stream.index, stamp), stamp + duration)

    def note_frame(self, stamp: float) -> float:
        """Notes the time stamp of a decoded frame; returns the seconds from the first packet to it."""
        stamp += 0.0 if self._stamped else self.skipped * self._step
        self._frames.append(stamp)
        return stamp - (self._packets or self._frames)[0]

    def lost(self) -> tuple[float, float]:
        """Returns the seconds from the first decoded frame to the end, and how many are damaged or missing."""
        stream, missing, last = self._stream, max(0.0, self._missing()), max(self._frames)
        if "mp4" in self._form and missing > 2 * self._step and self._count < stream.frames:
            # The header counts the frames; edit lists may remove some, but then the time stamps are complete.
            missing = max(missing, (1 - self._count / stream.frames) * float((stream.duration or 0) * stream.time_base))
        lost = self.holes + missing + max(0.0, max(self._packets, default=last) - last)
        return last - self._frames[0] + self._step + lost, lost

    def _missing(self) -> float:
        """Returns the seconds that the header announces after the last packet; 0 if it announces no length."""
        container, stream = self._container, self._stream
        rates = [s.codec_context.bit_rate or 0 for s in container.streams if s.codec_context]
        if self._form & _UNANNOUNCED or sum(rates) == container.bit_rate > 0:  # FFmpeg divided the file's size by these
            return 0.0
        end = self._ends[stream.index]
        if "avi" in self._form:  # in a file without its end, the duration is that of the rest
            return float(max(stream.duration or 0, stream.frames) * stream.time_base) - end
        if "mp4" in self._form and stream.duration:
            return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - end
        if self._tag:
            begin, (hours, minutes, seconds) = self._packets[0], self._tag.groups()
            announced = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        else:  # the length of the file is that of its longest stream, which may be the sound
            begin, end = (container.start_time or 0) / av.time_base, max(self._ends.values())
            announced = (container.duration or 0) / av.time_base or ("asf" in self._form and self._asf_duration())
        # Some programs, among them FFmpeg for Matroska, write the time of the end, others the length.
        return announced - (end if 0 < begin < announced else end - begin)

    def _asf_duration(self) -> float:
        """Returns the play duration of an ASF file, which FFmpeg does not report if the end is missing."""
        with open(self._container.name.removeprefix("file:"), "rb") as file:
            properties = file.read(_SEARCHED).partition(_ASF_FILE_PROPERTIES)[2]
        duration, _, preroll, flags = struct.unpack("<QQQI", properties[48:76].ljust(28, b"\1"))
        return 0.0 if flags & 1 else duration / 1e7 - preroll / 1e3  # 1: a broadcast, of unknown length
