"""The matrix by which a video's YUV becomes RGB, as FFmpeg's scaler knows it.

PQ and HLG (HDR) are shown as ffmpeg shows them without a filter: the samples are converted as they
are, without tone mapping, so the picture looks flat and a little dark.

Source: ITU-T H.273, table 4 (matrix coefficients) and table 2 (colour primaries).
"""

from typing import Any

from schemas.errors import ErrorType, UnitError

_KNOWN = (0, 1, 2, 4, 5, 6, 7, 9)
_BT709, _BT2020 = 1, 9
_CLOSE = {10: "BT.2020 of constant luminance", 12: "chroma-derived", 13: "chroma-derived"}
"""Matrices whose pictures hardly differ from those of BT.709 or BT.2020."""
_OTHER = {8: "YCgCo", 11: "YDzDx", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"}


def known_matrix(frame: Any) -> int:
    """The matrix (H.273) that is used for a frame, or for a stream's codec context.

    Raises:
        UnitError: FFmpeg's scaler has neither its matrix nor a close one.
    """
    matrix = int(frame.colorspace)
    if matrix in _CLOSE:
        return _BT2020 if matrix == 10 or int(frame.color_primaries) == _BT2020 else _BT709
    if matrix in _OTHER:
        raise UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"the video's colours are stored as {_OTHER[matrix]}, which FFmpeg's scaler does not "
            "convert; `ffmpeg -i FILE -vf zscale=matrix=709 NEW.mp4` does",
        )
    return matrix if matrix in _KNOWN else 2


def matrix_notes(frame: Any) -> tuple[str, ...]:
    """A note if another matrix than a frame's own is used."""
    own, used = int(frame.colorspace), known_matrix(frame)
    if own not in _CLOSE:
        return ()
    name = "BT.2020" if used == _BT2020 else "BT.709"
    return (f"the colours are stored as {_CLOSE[own]}, and were converted as {name}",)
