"""Start pictures: what somebody uploads, checked by its header first, then cut to the model's size.

A picture's bytes say little about its pixels (a 140 KB PNG can unpack to half a gigabyte), so nothing is decoded before
format, size and frame count were read from the header.

Beside ``photo.jpg`` may lie ``photo.depth.png``, 8 or 16 bits of grey, the nearer the lighter, in any scale: how near what it shows is.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 16_000_000
MAX_SIDE = 8192
MIN_SIDE = 16

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class ImageError(ValueError):
    """A picture that cannot start a world. The message is one sentence for the person who gave it."""


def load_start_image(source: str | Path | bytes | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The picture cut from the centre and resized (antialiased) to `size`.

    Args:
        source: Path, file content, or a PIL image. Files may be JPEG, PNG or WebP with one frame.
        size: ``(height, width)`` of the model.

    Returns:
        uint8 [H, W, 3]

    Raises:
        ImageError: Not a picture, too large, too small, animated, or damaged.
    """
    if isinstance(source, Image.Image):
        _check_size(*source.size)
        return _fit(source, size)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), size)
    try:
        with open(source, "rb") as file:
            return _decode(file, size)
    except (FileNotFoundError, IsADirectoryError):
        raise ImageError(f"There is no picture at {source}.") from None
    except PermissionError:
        raise ImageError(f"The picture {source} cannot be read: permission denied.") from None


def load_depth_map(picture: str | Path) -> np.ndarray | None:
    """How near what a picture shows is, where a file beside it says so: float32 [h, w] of the whole picture, in a scale of its own.

    Raises ImageError: the file is there and is none.
    """
    path = Path(picture).with_suffix(".depth.png")
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            _check_size(*image.size)
            if not image.mode.startswith(("L", "I")) or image.mode == "LA":
                raise ImageError(f"The depth map {path.name} has colours: give 8 or 16 bits of grey, the nearer the lighter.")
            return np.asarray(image, dtype=np.float32)
    except (UnidentifiedImageError, Image.DecompressionBombError, *_DAMAGED) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"The depth map {path.name} is no PNG, or damaged.") from None


def fit_depth_map(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth map float32 [h, w] of a whole picture, cut as `load_start_image` cuts the picture and averaged to `size`."""
    return np.asarray(ImageOps.fit(Image.fromarray(depth), size[::-1], Image.Resampling.BOX))


def _decode(file: io.BufferedIOBase, size: tuple[int, int]) -> np.ndarray:
    try:
        image = Image.open(file, formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"The picture is too large: at most {MAX_PIXELS // 1_000_000} megapixels.") from None
    except UnidentifiedImageError:
        raise ImageError("This is not a JPEG, PNG or WebP picture.") from None
    except _DAMAGED:
        raise ImageError("The picture is damaged or cut short.") from None
    with image:
        _check_size(*image.size)
        if frames > 1 and image.format != "MPO":  # phones store a JPEG with a second, hidden picture as MPO
            raise ImageError(f"The picture is an animation of {frames} frames: give a still picture.")
        edge = max(size)
        image.draft("RGB", (edge, edge))  # lets the JPEG decoder skip what resizing would throw away
        try:
            image.load()
        except _DAMAGED:
            raise ImageError("The picture is damaged or cut short.") from None
        return _fit(image, size)


def _check_size(width: int, height: int) -> None:
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS // 1_000_000} megapixels"
        raise ImageError(f"The picture is too large ({width} x {height}): {limit}.")
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ImageError(f"The picture is too small ({width} x {height}): at least {MIN_SIDE} pixels a side.")


def _fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    image = ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), (width, height), Image.Resampling.LANCZOS)
    return np.array(image, dtype=np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: PIL's own conversion clips it to white
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
