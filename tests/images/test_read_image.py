"""Images: the pixels of the model's reference code, and formats that it does not handle."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipeline.images import read_image
from pipeline.images.read_image import load_image, open_image, resize, to_rgb
from pipeline.media.probe import probe_image
from pipeline.model.frame_size import image_size
from pipeline.model.patches import patches
from pipeline.storage.media_file import MediaFile
from schemas.errors import UnitError
from schemas.job.sampling import Budget


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
    width, height = open_image(as_file(buffer.getvalue())).size
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


@pytest.mark.parametrize("place", ["xmp", "xmp element", "raw profile"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_png_may_have_its_orientation_in_xmp_or_a_raw_profile(orientation: int, place: str):
    """As Pillow's own ``exif_transpose`` shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = exif.tobytes()
    raw = raw if raw.startswith(b"Exif") else b"Exif\0\0" + raw
    texts = {
        "xmp": ("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>'),
        "xmp element": (
            "XML:com.adobe.xmp",
            f"<tiff:Orientation>{orientation}</tiff:Orientation>",
        ),
        "raw profile": ("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n"),
    }
    info = PngInfo()
    info.add_itxt(*texts[place]) if "xmp" in place else info.add_text(*texts[place], zip=True)
    image = Image.new("RGB", (96, 64), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 48, 32))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
    found = load_image(as_file(buffer.getvalue()))
    assert found.tobytes() == expected.convert("RGB").tobytes()
    assert open_image(as_file(buffer.getvalue())).size == found.size


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # 99
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02ab\0\0\0\0\0\0",  # text
        b"Exif\0\0II*\0\xff\xff\xff\xff",  # a directory beyond the end
        b"Exif\0\0garbage",
        b"Exif\0\0",
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_means_nothing_does_not_end_a_sound_image(exif: bytes, format: str):
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 10, 10)).save(buffer, format, exif=exif)
    assert load_image(as_file(buffer.getvalue())).size == (96, 64)
    assert probe_image(as_file(buffer.getvalue())).rotation == 0


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


def test_every_sound_image_of_the_archive_loads(archive: Path):
    names = sorted(path for path in (archive / "images").iterdir() if "truncated" not in path.name)
    assert len(names) >= 24
    for path in names:
        image = load_image(as_file(path.read_bytes()))
        assert image.mode == "RGB", path
        assert np.asarray(image).std() > 1, path  # not blank


def test_a_truncated_image_is_refused(archive: Path):
    with pytest.raises(UnitError, match="broken image data: .*truncated"):
        load_image(as_file((archive / "images" / "truncated.jpg").read_bytes()))


def test_a_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnitError, match="11x10 is over the limit of 100 pixels"):
        load_image(opened(Image.new("RGB", (11, 10))))


def test_a_file_that_is_not_an_image_is_refused():
    with pytest.raises(UnitError, match="not an image in any known format"):
        load_image(as_file(b"<html>404</html>"))
