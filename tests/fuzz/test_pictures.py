"""Spoiled pictures: each becomes an RGB array, or is refused with one ValueError that names the file."""

import io
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from mutations import COUNT, mutated
from PIL import Image, features

from minikeye.inputs.pixels import is_picture, picture

FORMATS = {
    "JPEG": ("RGB", {}),
    "PNG": ("RGBA", {}),
    "WEBP": ("RGBA", {"lossless": True}),
    "GIF": ("P", {"transparency": 3}),
    "BMP": ("RGB", {}),
    "TIFF": ("RGB", {"compression": "tiff_lzw"}),
    "PPM": ("RGB", {}),
}
SECONDS, MEGABYTES = 5.0, 2500  # the largest picture that is read takes 2 GB


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd tags; that is no error to a user
def test_spoiled_pictures(tmp_path: Path, kind: str) -> None:
    mode, options = FORMATS[kind]
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow reads no WebP")
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB").convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, kind, **options, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(file.getvalue())
    assert picture(path).shape[2] == 3
    read = refused = 0
    for how, data in mutated(file.getvalue(), kind, COUNT or 30):
        path.write_bytes(data)
        begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        try:
            is_picture(path)
            array = picture(path)
        except ValueError as error:
            assert str(path) in str(error), how
            refused += 1
        else:
            assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0, how
            read += 1
        assert time.process_time() - begun < SECONDS, how
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before < MEGABYTES, how
    assert read > 0 and refused > 0, (read, refused)
