"""Start pictures: what is refused, how fast, and what becomes of the rest."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from worldmodel.images import ImageError, load_start_image

SIZE = (48, 64)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of_zeros(width, height):
    """A valid greyscale PNG of any size for a few bytes, made without its pixels."""

    def block(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = b"\0" * (width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", data) + block(b"IEND", b"")


@pytest.fixture
def photo():
    y, x = np.mgrid[0:300, 0:400]
    return Image.fromarray(np.stack([x * 255 // 400, y * 255 // 300, (x + y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_bytes_path_and_image_give_a_picture_of_the_models_size(photo, tmp_path, kind):
    data = encoded(photo, kind)
    (tmp_path / "photo").write_bytes(data)
    for source in (data, tmp_path / "photo", str(tmp_path / "photo"), photo):
        picture = load_start_image(source, SIZE)
        assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8 and picture.flags.writeable


def test_it_is_cut_from_the_centre(photo):
    wide = Image.new("RGB", (600, 100), "red")
    wide.paste("blue", (250, 0, 350, 100))
    assert (load_start_image(encoded(wide), (32, 32))[:, 4:-4] == (0, 0, 255)).all()
    whole = load_start_image(encoded(photo), SIZE)
    assert whole[24, 2, 0] < 20 and whole[24, -3, 0] > 235


def test_fine_detail_is_averaged_not_aliased():
    checks = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(load_start_image(encoded(checks), (64, 64)).astype(int) - 127).max() < 12


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the top becomes the right side
    picture = load_start_image(encoded(image, "JPEG", quality=95, exif=exif), (32, 32))
    assert picture[:, :14].mean() > 240 and picture[:, 18:].mean() < 15


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_other_modes_become_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    else:
        image = Image.new("RGBA", (64, 64), (128, 128, 128, 255)).convert(mode)
    picture = load_start_image(encoded(image), SIZE)
    if mode != "1":
        assert abs(picture.astype(int) - 128).max() <= 2


def test_transparency_becomes_white():
    assert (load_start_image(encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), SIZE) == 255).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(12000, 12000), (9000, 10), (5000, 4000)])
def test_too_many_pixels_are_refused_by_the_header_alone(size):
    data = png_of_zeros(*size)
    assert len(data) < 1_000_000
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(ImageError, match="too large"):
        load_start_image(data, SIZE)
    assert time.perf_counter() - begun < 0.5 and tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_what_is_no_picture_is_refused(photo, tmp_path):
    for data in (b"", b"hello, this is text", b"\0" * 1000, encoded(photo, "BMP"), encoded(photo, "GIF"), encoded(photo, "TIFF")):
        with pytest.raises(ImageError, match="not a JPEG, PNG or WebP"):
            load_start_image(data, SIZE)
    with pytest.raises(ImageError, match="no picture at"):
        load_start_image(tmp_path / "missing.png", SIZE)
    with pytest.raises(ImageError, match="no picture at"):
        load_start_image(tmp_path, SIZE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(photo, kind):
    data = encoded(photo, kind, save_all=True, append_images=[photo.rotate(90), photo.rotate(180)])
    with pytest.raises(ImageError, match="animation of 3 frames"):
        load_start_image(data, SIZE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(photo, kind):
    data = encoded(photo, kind)
    for keep in (len(data) // 10, len(data) // 2, len(data) - 40):
        with pytest.raises(ImageError):
            load_start_image(data[:keep], SIZE)


def test_tiny_pictures_are_refused():
    with pytest.raises(ImageError, match="too small"):
        load_start_image(Image.new("RGB", (8, 64)), SIZE)
