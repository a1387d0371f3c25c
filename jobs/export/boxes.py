"""COCO and YOLO: pictures with boxes, for detectors."""

from collections.abc import Iterator
from typing import Any

import yaml

from jobs.console.json_values import json_text
from jobs.export.boxed_frames import boxed_frames
from jobs.export.source import Files, Source


def coco(source: Source) -> Files:
    """COCO's detection format: ``images/`` and ``annotations.json``.

    Categories are the job's labels in the job's order, then others as they appear. For videos, each
    frame with boxes is an image; its ``pts_seconds`` is the frame's.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = {label: k for k, label in enumerate(source.labels, 1)}
    for frame in boxed_frames(source):
        yield f"images/{frame.name}.jpg", frame.jpeg()
        images.append(
            {
                "id": len(images) + 1,
                "file_name": f"{frame.name}.jpg",
                "width": frame.image.width,
                "height": frame.image.height,
                "uri": frame.row["uri"],
                "unit_id": frame.row["unit_id"],
                "pts_seconds": frame.pts_seconds,
            }
        )
        for label, (x1, y1, x2, y2) in frame.boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": categories.setdefault(label, len(categories) + 1),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    if not images:
        return
    content = {
        "info": {"description": "Reelscribe annotations", "recipe_ids": source.recipe_ids},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for name, k in categories.items()],
    }
    yield "annotations.json", json_text(content, indent=1).encode()


def yolo(source: Source) -> Files:
    """YOLO's detection format: ``images/train/``, ``labels/train/`` and ``data.yaml``.

    Classes are the job's labels in the job's order, then others as they appear. Each box
    is a line: class, centre and size, as shares of the picture's sides.
    """
    classes = {label: k for k, label in enumerate(source.labels)}
    num_images = 0
    for frame in boxed_frames(source):
        num_images += 1
        yield f"images/train/{frame.name}.jpg", frame.jpeg()
        lines = [
            f"{classes.setdefault(label, len(classes))} "
            + " ".join(f"{share:.6f}" for share in _shares(box, frame.image.size))
            for label, box in frame.boxes
        ]
        yield f"labels/train/{frame.name}.txt", "".join(f"{line}\n" for line in lines).encode()
    if not num_images:
        return
    content = {
        "path": ".",
        "train": "images/train",
        "val": "images/train",
        "names": {k: name for name, k in classes.items()},
    }
    yield "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False).encode()


def _shares(box: tuple[float, float, float, float], size: tuple[int, int]) -> Iterator[float]:
    """Yield centre and size of a box, clipped to the picture, as shares of its sides."""
    x1, x2 = (min(max(x, 0.0), size[0]) / size[0] for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), size[1]) / size[1] for y in (box[1], box[3]))
    yield from ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
