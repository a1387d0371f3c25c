"""What a model saw, for parsers: an image and a video."""

from schemas.task import View

IMAGE = View(media_type="image", width=640, height=480)
VIDEO = View(
    media_type="video",
    width=1920,
    height=1080,
    pts_seconds=(10.0, 10.5, 11.0, 11.5),
    start_seconds=10.0,
    end_seconds=60.0,
)


def corners(x1: float, y1: float, x2: float, y2: float) -> dict[str, float]:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
