"""Conversion of decoded frames to upright RGB of one size, by FFmpeg's `scale` filter.

PyAV's own conversion ignores where a file's chroma samples lie, which shifts colours by a pixel at edges.
"""

import functools
import logging

import av
import numpy as np

from vivit_jax.data.video import frame_folder

# Transfer characteristics of HDR, numbered as in ITU-T H.273: PQ (SMPTE ST 2084) and HLG (ARIB STD-B67).
_HDR = {16: "PQ", 18: "HLG"}
_warn_once = functools.cache(logging.getLogger(__name__).warning)


class Converter:
    """Converts the frames of one video; `color_trc` is the transfer characteristic of its stream."""

    def __init__(self, short_side: int | None, color_trc: int | None):
        self._short_side, self._hdr, self._size = short_side, _HDR.get(color_trc or 0), None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns uint8 [H, W, 3], in the size of the first frame; raises one of `packets.DAMAGE`."""
        turns = round((frame.rotation or 0) / 90) % 4
        turned = slice(None, None, -1 if turns % 2 else 1)
        self._size = self._size or frame_folder.output_size((frame.width, frame.height)[turned], self._short_side)
        colours = frame.colorspace, frame.color_range, self._hdr
        graph = _graph((frame.width, frame.height), frame.format.name, self._size[turned], *colours)
        try:
            graph.push(frame)
            image = graph.pull().to_ndarray()
            if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
                a, b, _, c, d = np.frombuffer(matrix, "<i4")[:5].astype(int)
                image = image[:: -1 if a * d < b * c else 1]  # `rotation` does not tell mirror images
            # FFmpeg pads rows; the array is a view of them until copied.
            return np.ascontiguousarray(np.rot90(image, turns))
        except BaseException:
            _graph.cache_clear()  # this one may still hold the frame
            raise


@functools.lru_cache(8)  # the table of a tone mapping takes seconds
def _graph(size, pixels, out_size, colorspace, color_range, hdr) -> av.filter.Graph:
    """Returns the graph for frames of these properties; `colorspace` and `color_range` only tell graphs apart."""
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):
        graph.threads = 1
    source = graph.add_buffer(width=size[0], height=size[1], format=pixels, time_base=1)
    options = f"{out_size[0]}:{out_size[1]}:flags=bicubic:threads=1"
    try:
        scale = graph.add("scale", options + (":out_transfer=bt709:out_primaries=bt709" if hdr else ""))
    except av.error.OptionNotFoundError:
        _warn_once(f"HDR ({hdr}) is not tone-mapped, and its colours are pale: PyAV {av.__version__} is too old for it")
        return _graph(size, pixels, out_size, colorspace, color_range, None)
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph
