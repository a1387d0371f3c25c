"""Images as the model's reference code makes them, and what users expect beyond it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipeline import images
from pipeline.budget import image_size
from pipeline.engines.patches import patches
from pipeline.images import load_image, resize, to_rgb, upright_size
from pipeline.storage import MediaFile
from schemas.errors import UnitError
from schemas.job import Budget


def opened(image: Image.Image, format: str = "PNG", **options: object) -> MediaFile:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return as_file(buffer.getvalue())


def as_file(content: bytes) -> MediaFile:
    return MediaFile(file=io.BytesIO(content), size_bytes=len(content), content_version="1")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    pixels = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode=mode)


@pytest.mark.parametrize("size", [(640, 480), (31, 57), (33, 500), (1000, 31), (300, 300)])
def test_pixels_and_patches_equal_the_models_own_image_processor(size: tuple[int, int]):
    image = noise(*size)
    oracle = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 4 * 1024, "longest_edge": 200 * 1024},
    )
    expected = oracle(image, return_tensors="pt")
    planned = image_size(size[1], size[0], Budget(image_tokens=(4, 200)))
    pixels = resize(load_image(opened(image)), planned.resized_height, planned.resized_width)

    import torch

    assert list(planned.grid_thw) == expected["image_grid_thw"][0].tolist()
    torch.testing.assert_close(
        patches(torch.from_numpy(pixels.copy())[None]),
        expected["pixel_values"],
        rtol=0,
        atol=1e-6,
    )


def test_transparency_goes_onto_white():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    rgb = load_image(opened(image))
    assert rgb.getpixel((10, 10)) == (0, 0, 255)
    assert rgb.getpixel((50, 10)) == (255, 255, 255)


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert load_image(opened(image)).getpixel((0, 0)) == (127, 127, 127)


def test_palette_and_gray_with_transparency_go_onto_white():
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 10, 10] + [0] * 765)
    assert load_image(opened(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    gray = Image.new("LA", (8, 8), (0, 0))
    assert load_image(opened(gray)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_and_the_size_is_the_displayed_one(
    orientation: int, format: str
):
    image = Image.new("RGB", (96, 64), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 48, 32))  # red in the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format, exif=exif)
    upright = load_image(as_file(buffer.getvalue()))
    with Image.open(buffer) as header:
        width, height, _ = upright_size(header)
    assert upright.size == (width, height)
    assert upright.size == ((64, 96) if orientation >= 5 else (96, 64))
    corners = {
        1: (0, 0),
        2: (1, 0),
        3: (1, 1),
        4: (0, 1),
        5: (0, 0),
        6: (1, 0),
        7: (1, 1),
        8: (0, 1),
    }
    x, y = corners[orientation]
    assert upright.getpixel((x * (width - 1), y * (height - 1))) == (255, 0, 0)


def test_sixteen_bit_gray_keeps_its_upper_bits():
    values = np.full((8, 8), 0x8000, dtype=np.uint16)
    assert load_image(opened(Image.fromarray(values))).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_and_one_bit_become_rgb():
    assert to_rgb(Image.new("CMYK", (4, 4), (0, 0, 0, 255))).getpixel((0, 0)) == (0, 0, 0)
    assert to_rgb(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_a_gif_shows_its_first_frame():
    red, blue = (Image.new("RGB", (32, 32), c) for c in ((255, 0, 0), (0, 0, 255)))
    media = opened(red, "GIF", save_all=True, append_images=[blue])
    assert load_image(media).getpixel((5, 5)) == (255, 0, 0)


def test_every_image_of_the_archive_that_is_whole_loads(archive: Path):
    names = sorted(path for path in (archive / "images").iterdir() if "truncated" not in path.name)
    assert len(names) >= 24
    for path in names:
        image = load_image(as_file(path.read_bytes()))
        assert image.mode == "RGB", path
        assert np.asarray(image).std() > 1, path  # not blank


def test_a_truncated_image_says_so(archive: Path):
    with pytest.raises(UnitError, match="broken image data: .*truncated"):
        load_image(as_file((archive / "images" / "truncated.jpg").read_bytes()))


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnitError, match="11x10 is over the limit of 100 pixels"):
        load_image(opened(Image.new("RGB", (11, 10))))


def test_no_image_at_all_says_so():
    with pytest.raises(UnitError, match="not an image in any known format"):
        load_image(as_file(b"<html>404</html>"))
