"""Load handwritten digits of 8 x 8 pixels as series of one point each, for models without time."""

import numpy as np

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order

GREYS = 17  # pixels count from 0 to 16


class Digits(SeriesData):
    """Load the 1797 digits of scikit-learn (test part of UCI's Optical Recognition of Handwritten Digits).

    An image is one point at time 0 whose 64 channels are its pixels, row by row; its label is the digit.
    * binary: 1 where a pixel is at least 8 of 16, else 0. Some 50 images are then duplicates of another one.
    * grey (binary=false): (pixel + U[0, 1)) / 17. The noise bounds log p, which is unbounded for densities of whole
      numbers. log p of the pixels 0 .. 16 themselves is at least that of the values minus 64 log 17 (Theis et al.
      2016, arXiv 1511.01844, section 3.1).
    """

    classes = tuple("0123456789")
    image = (8, 8)

    def __init__(
        self,
        binary: bool = True,
        shares: list[Positive] | tuple[Positive, ...] = (0.7, 0.15, 0.15),
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        splits.check_cut(shares, None, None)
        self.binary, self.shares = binary, tuple(shares)
        self.support = "binary" if binary else "real"

    @property
    def channels(self):
        return tuple(f"r{row}c{column}" for row in range(8) for column in range(8))

    def make(self):
        pixels, labels = read()
        rng = generator(self.seed, 9)
        order = rng.permutation(len(pixels))
        values = (pixels >= 8).astype(np.float64) if self.binary else (pixels + rng.random(pixels.shape)) / GREYS
        series = Ragged.of(np.zeros((len(pixels), 1)), values[:, None], labels=labels).part(order)
        return in_order(series, tuple(splits.sizes(len(pixels), self.shares, "images")))


def read():
    """Return pixels (images, 64), whole numbers from 0 to 16 as float64, and labels (images,).

    Raise ValueError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "data=digits comes with scikit-learn, which is not installed; run: pip install 'vrnn_lab[digits]'"
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels.astype(np.int64)
