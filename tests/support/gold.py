"""Builders of right answers, in the form of gold."""


def event(start: float, end: float, caption: str | None = "x") -> dict:
    return {"start_seconds": start, "end_seconds": end, "caption": caption}
