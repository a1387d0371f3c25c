"""Rows of the annotation table, built without units."""


def row(
    unit_id: str,
    media_id: str,
    version: str | None,
    *,
    video: tuple[float, float, float, float] | None = None,
    error: str | None = None,
    readable: bool = True,
) -> dict:
    """A row of the annotation table, of an image unless ``video`` is given.

    video: begin and duration of the file, start and end of the unit, in seconds.
    error: the type of the error of a failed row. readable: False: the media could not be read.
    """
    begin, duration, start, end = video or (None,) * 4
    return {
        "unit_id": unit_id, "media_id": media_id, "run_id": "r", "recipe_id": "abc",
        "uri": media_id, "content_version": version, "status": "failed" if error else "ok",
        "error": {"stage": "plan", "type": error, "message": "", "attempts": 1} if error else None,
        "media": {
            "media_type": "video" if video else "image", "has_alpha": False, "width": 1,
            "height": 1, "rotation": 0, "begin_seconds": begin, "duration_seconds": duration,
        } if readable else None,
        "sampling": {
            "frames": "exact", "origin_seconds": 0.0, "num_frames": 1,
            "resized_height": 32, "resized_width": 32, "grid_thw": [1, 2, 2],
            "num_vision_tokens": 1, "start_seconds": start,
            "end_seconds": end,
        } if readable else None,
        "parts": [], "responses": [], "timings": {},
    }  # fmt: skip
