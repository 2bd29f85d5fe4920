"""Make the embedded data set `poa_jax/data/assets/fashion_mnist_14k.npz.xz`.

The images are Fashion-MNIST by Han Xiao, Kashif Rasul and Roland Vollgraf, copyright 2017
Zalando SE, MIT (Expat) licence; text and credit go beside the file, in `assets/README`. They come
from Debian's package `dataset-fashion-mnist`:

    apt-get install dataset-fashion-mnist
    python scripts/make_embedded_dataset.py [FOLDER [OUTPUT]]

Kept are the first 1200 images of each class of the training set and the first 200 of the test
set, in the order of the files. The output depends on nothing but the input: the archive carries
no time stamps, and it is stored uncompressed inside one xz stream with fixed settings.
"""

import io
import lzma
import sys
import zipfile
from pathlib import Path

import numpy as np

from poa_jax.data.sources import EMBEDDED_FILE, FASHION_MNIST_FOLDER, read_idx

PER_CLASS = {"train": 1200, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}
ASSETS = Path(__file__).resolve().parent.parent / "poa_jax" / "data" / "assets"
# No position bits: pixels are single bytes, so alignment says nothing. The dictionary spans it all.
XZ_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0, "dict_size": 1 << 24}
]


def balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return the sorted positions of the first `per_class` entries of every label."""
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def embedded_bytes(folder: Path) -> bytes:
    """Return the content of the embedded file made from the idx files in `folder`."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for split, per_class in PER_CLASS.items():
            images = read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz")
            labels = read_idx(folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz")
            keep = balanced(labels, per_class)
            for name, array in (("images", images[keep]), ("labels", labels[keep])):
                member = io.BytesIO()
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{split}_{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                out.writestr(entry, member.getvalue())
    return lzma.compress(archive.getvalue(), format=lzma.FORMAT_XZ, filters=XZ_FILTERS)


def main(argv: list[str]) -> None:
    """Write the file; `argv` is [FOLDER [OUTPUT]]."""
    folder = Path(argv[0] if argv else FASHION_MNIST_FOLDER)
    output = Path(argv[1]) if len(argv) > 1 else ASSETS / EMBEDDED_FILE
    content = embedded_bytes(folder)
    temporary = output.with_name(output.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(output)
    print(f"{output}: {len(content):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
