"""The natural pictures and handwritten digits that minivid is made of, read from two installed packages.

Nothing is downloaded and nothing is copied into this repository: the files lie in the wheels of scikit-image and
scikit-learn, which are found but not imported.

The split "validation", for choosing settings, shows the pictures and the handwriting of "train" in videos of its own: a
video is drawn from a generator that the split's name is a part of. There are no others that it could show: all 1,797
digits are in "train" or "test", and what the packages hold beyond these pictures is one photograph without a stated
licence, and drawings, some of coloured shapes. What "train" or "test" gave away would change videos that models were
trained and measured on. So nothing that is chosen on "validation" has seen "test", and a score on it says nothing about
new pictures or hands: "test" does.

| name | split | what it shows | source | licence |
|---|---|---|---|---|
| astronaut.png | train | Eileen Collins | scikit-image, from NASA | public domain |
| brick.png | train | a brick wall | scikit-image, from CC0Textures | CC0 |
| camera.png | train | a photographer | scikit-image, Lav Varshney | CC0 |
| cell.png | train | a cell in saline, by its phase | scikit-image, Paul Mueller | CC0 |
| clock_motion.png | train | a wall clock, blurred by motion | scikit-image, Stefan van der Walt | public domain |
| coins.png | train | Greek coins | scikit-image, Brooklyn Museum | no known restrictions |
| grass.png | train | grass | scikit-image, from DeviantArt (linolafett) | CC0 |
| gravel.png | train | gravel | scikit-image, from CC0Textures | CC0 |
| hubble_deep_field.jpg | train | galaxies | scikit-image, from NASA | public domain |
| ihc.png | train | stained tissue | scikit-image, from CMMI | no known restrictions |
| moon.png | train | the moon | scikit-image | not stated for the file |
| page.png | train | a scanned page | scikit-image | not stated for the file |
| retina.jpg | train | a retina | scikit-image, Mikael Haeggstroem | CC0 |
| text.png | train | words on paper | scikit-image, from Wikipedia | public domain |
| china.jpg | train | a Chinese palace | scikit-learn, danielbuechele on Flickr | CC BY 2.0 |
| flower.jpg | train | a flower | scikit-learn, vultilion on Flickr | CC BY 2.0 |
| chelsea.png | test | a cat | scikit-image, Stefan van der Walt | CC0 |
| coffee.png | test | a cup of coffee | scikit-image, Rachel Michetti | CC0 |
| rocket.jpg | test | the launch of a rocket | scikit-image, SpaceX | public domain |
| digits.csv.gz | both | 1,797 handwritten digits, 8x8 | scikit-learn, from UCI (E. Alpaydin, C. Kaynak) | CC BY 4.0 |
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

Split = Literal["train", "validation", "test"]

SIDE = 256  # pixels along each side of a picture
TRAIN_DIGITS = 1400  # of the 1,797; the other 397 are the test split

_PIP_NAME = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_PICTURES = {
    "train": (
        *(
            ("skimage", f"data/{name}")
            for name in (
                "astronaut.png",
                "brick.png",
                "camera.png",
                "cell.png",
                "clock_motion.png",
                "coins.png",
                "grass.png",
                "gravel.png",
                "hubble_deep_field.jpg",
                "ihc.png",
                "moon.png",
                "page.png",
                "retina.jpg",
                "text.png",
            )
        ),
        ("sklearn", "datasets/images/china.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "test": (("skimage", "data/chelsea.png"), ("skimage", "data/coffee.png"), ("skimage", "data/rocket.jpg")),
}
_PICTURES["validation"] = _PICTURES["train"]


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is "train", "validation" or "test"."""
    if split not in _PICTURES:
        raise ValueError(f'split must be "train", "validation" or "test", not {split!r}')


@cache
def load_pictures(pictures: str) -> UInt8[Tensor, "n 3 side side"]:
    """All pictures of a collection, cut to their middle square and resized to 256x256. Do not write into the result.

    pictures: a split, or the path of a folder of photographs (.jpg), which come after the training split's own. Grey
    pictures have three equal channels. Raises ModuleNotFoundError naming the package to install, FileNotFoundError
    where the package lacks a file, ValueError for a folder that is not there or holds no photograph.
    """
    if pictures in _PICTURES:
        return torch.stack([_square(_package_file(package, name)) for package, name in _PICTURES[pictures]])
    if not (photographs := sorted(Path(pictures).glob("*.jpg"))):
        raise ValueError(f"expected a split or a folder with .jpg files in it, got {pictures!r}")
    return torch.cat((load_pictures("train"), torch.stack([_square(path) for path in photographs])))


@cache
def load_digits(split: Split) -> tuple[Float[Tensor, "n 8 8"], Int[Tensor, "n"]]:
    """Handwritten digits, ink in 0..1 (0 is paper), and which digit each one is. Do not write into the result.

    1,400 for training and validation, 397 for testing, parted by one fixed shuffle; every digit has 120 or more in the
    first and 30 or more in the second. Raises as `load_pictures` does.
    """
    check_split(split)
    table = np.loadtxt(_package_file("sklearn", "datasets/data/digits.csv.gz"), delimiter=",", dtype=np.float32)
    rows = torch.from_numpy(table)[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    rows = rows[TRAIN_DIGITS:] if split == "test" else rows[:TRAIN_DIGITS]
    return rows[:, :64].reshape(-1, 8, 8) / 16, rows[:, 64].long()


def _package_file(package: str, name: str) -> Path:
    """Path of a data file inside an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pip_name = _PIP_NAME[package]
        raise ModuleNotFoundError(f"minivid reads {name} from the package {pip_name}: run `pip install {pip_name}`")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: install the wheel of {_PIP_NAME[package]}, which ships it")
    return path


def _square(path: Path) -> UInt8[Tensor, "3 side side"]:
    """Middle square of a picture file, resized."""
    with Image.open(path) as picture:
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # lets the JPEG decoder skip detail that would be thrown away
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        box = (left, top, left + short, top + short)
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
