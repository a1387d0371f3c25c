"""Turn decoded video frames into the model's pixels: RGB, upright, on white, resized."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from pipeline.images.orientation import UPRIGHT, Orientation, frame_orientation
from pipeline.images.read_image import to_rgb
from pipeline.media.frames import Pixels, check_size
from schemas.tables.media import Media, Sampling

# Cubic with B = 0, C = 0.5 (Keys, a = -0.5), as in Pillow and in torch with antialias.
_CUBIC = "flags=bicubic+accurate_rnd:param0=0:param1=0.5"


_FILTERS: dict[Orientation, tuple[tuple[str, ...], ...]] = {
    UPRIGHT: (),
    Orientation(0, True): (("hflip",),),
    Orientation(180): (("hflip",), ("vflip",)),
    Orientation(180, True): (("vflip",),),
    Orientation(90, True): (("transpose", "cclock_flip"),),
    Orientation(90): (("transpose", "clock"),),
    Orientation(270, True): (("transpose", "clock_flip"),),
    Orientation(270): (("transpose", "cclock"),),
}
"""FFmpeg's filters, with their arguments, that make a frame upright."""


class Resizer:
    """Resizes RGB video frames: bicubic with antialias.

    FFmpeg's scaler is two to three times as fast as Pillow, and nearer to the reference. It would
    convert RGB to YUV and back, so each colour plane is scaled separately, as a grey picture.

    Source: torchvision's resize of float images, which the model's reference code uses.
    """

    def __init__(self, height: int, width: int, num_threads: int = 1) -> None:
        self._height, self._width = height, width
        self._num_threads = num_threads
        self._graphs: dict[tuple[str, int, int, Orientation], Any] = {}

    def __call__(self, frame: av.VideoFrame, orientation: Orientation = UPRIGHT) -> Pixels:
        """Make a frame upright, then resize it to ``uint8 [height, width, 3]``.

        frame: ``rgb24``, or ``gbrp``, which is faster.
        """
        key = frame.format.name, frame.width, frame.height, orientation
        if key[1:] == (self._width, self._height, UPRIGHT):
            return frame.to_ndarray(format="rgb24")  # type: ignore[return-value]  # it is uint8
        if key not in self._graphs:
            self._graphs[key] = self._graph(*key)
        frame.pts = 0
        self._graphs[key].push(frame)
        return self._graphs[key].pull().to_ndarray()  # type: ignore[no-any-return]

    def _graph(self, pixel_format: str, width: int, height: int, orientation: Orientation) -> Any:
        graph = av.filter.Graph()
        graph.threads = self._num_threads
        rgb = av.VideoFormat(pixel_format)
        source = graph.add_buffer(width=width, height=height, format=rgb, time_base=Fraction(1, 1))
        for name, *args in _FILTERS[orientation]:
            turned = graph.add(name, *args)
            source.link_to(turned)
            source = turned
        planes = graph.add("extractplanes", "r+g+b")
        merged = graph.add("mergeplanes", "map0s=1:map1s=2:map2s=0:format=gbrp")
        source.link_to(planes)
        for plane in range(3):
            scale = graph.add("scale", f"{self._width}:{self._height}:{_CUBIC}")
            planes.link_to(scale, plane, 0)
            scale.link_to(merged, 0, plane)
        packed, sink = graph.add("format", "rgb24"), graph.add("buffersink")
        merged.link_to(packed)
        packed.link_to(sink)
        graph.configure()
        return graph


class FrameConverter:
    """Converts decoded frames of one video to ``uint8 [H, W, 3]``: RGB, upright, on white, resized.

    The first frame must have the planned size; later frames may have any size.
    """

    def __init__(self, media: Media, sampling: Sampling, num_threads: int) -> None:
        self._media, self._is_first = media, True
        self._num_threads = num_threads
        self._reformatter = VideoReformatter()
        self._resizer = Resizer(sampling.resized_height, sampling.resized_width, num_threads)

    def __call__(self, frame: Any) -> Pixels:
        """Convert a frame.

        Raises:
            UnitError: it is the first frame, and its size is not the planned one.
        """
        orientation = frame_orientation(frame)
        if self._is_first:
            check_size(self._media, *orientation.upright_size(frame.width, frame.height))
            self._is_first = False
        if self._media.has_alpha:
            rgba = Image.fromarray(frame.to_ndarray(format="rgba"), mode="RGBA")
            rgb = av.VideoFrame.from_ndarray(np.asarray(to_rgb(rgba)), format="rgb24")
        else:
            # As FFmpeg's own tools interpolate chroma of more than 8 bits.
            interpolation = Interpolation.BICUBIC if is_deep(frame.format.name) else None
            rgb = self._reformatter.reformat(
                frame,
                format=_rgb_format(frame),
                interpolation=interpolation,
                threads=self._num_threads,
            )
        return self._resizer(rgb, orientation)


def is_deep(pixel_format: str | None) -> bool:
    """Whether a pixel format has more than 8 bits a component."""
    if pixel_format is None:
        return False
    return any(c.bits > 8 for c in av.VideoFormat(pixel_format).components)


def _rgb_format(frame: Any) -> str:
    """Return planar RGB, which is resized a third faster, if its pixels equal those of packed RGB.

    In other cases FFmpeg 8 uses other code for planar RGB, which gets the last columns wrong if
    the width is not a multiple of 16.
    """
    is_same = frame.width % 16 == 0 and frame.height % 2 == 0
    return "gbrp" if is_same and frame.format.name in ("yuv420p", "yuvj420p") else "rgb24"
