"""The labelled images of an evaluation: a bank to compare with, and queries to classify."""

from collections.abc import Iterator

import numpy as np

from poa_jax.data.folder import UnreadableImage
from poa_jax.data.pipeline import eval_batches
from poa_jax.data.sources import Source, open_source

BANK_SPLIT = "train"
QUERY_SPLITS = ("test", "validation")  # the first that is there and has labels


def open_bank_and_queries(spec: str, split: str | None = None) -> tuple[Source, Source, str]:
    """Open the training split of a data source, and the split to classify.

    Args:
      spec: as in `data.source`.
      split: the one to classify. None takes "test", or "validation" where "test" is missing or has
        no labels (the test split of ImageNet has none).

    Returns:
      The bank, the queries, and the name of the queries' split.

    Raises:
      FileNotFoundError: for missing images, or a missing split of a folder.
      ValueError: for images without labels, another missing split, or classes that differ.
    """
    bank = open_source(spec, BANK_SPLIT)
    check_labels(bank, BANK_SPLIT)
    queries, split = _open_queries(spec, (split,) if split else QUERY_SPLITS)
    check_labels(queries, split)
    _check_classes(bank, queries, split)
    return bank, queries, split


def labelled_batches(
    source: Source,
    resize: int,
    crop: int,
    batch_size: int,
    workers: int = 2,
    max_bad_fraction: float = 0.01,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (images uint8 (b, S, S, 3), labels int32 (b,), valid); see `eval_batches`.

    Raises:
      ValueError: for an image without a label, and for too many unreadable images.
    """
    check_labels(source, "given")
    batches = eval_batches(
        source, resize, crop, batch_size, workers=workers, max_bad_fraction=max_bad_fraction
    )
    for images, labels, valid in batches:
        if (labels[:valid] < 0).any():
            raise ValueError("k-NN needs labels, and some of these images have none")
        yield images, labels, valid


def check_labels(source: Source, split: str) -> None:
    """Raise ValueError for a source without labels."""
    if source.num_classes is None:
        raise ValueError(
            f"k-NN needs labels, and the {split} images have none; put them into a sub-folder for "
            "each class, or name other images with --config.data.source=SOURCE"
        )


def _open_queries(spec: str, splits: tuple[str, ...]) -> tuple[Source, str]:
    missing: Exception | None = None
    unlabelled: tuple[Source, str] | None = None
    for split in splits:
        try:
            source = open_source(spec, split)
        except (ValueError, FileNotFoundError) as error:
            missing = missing or error  # of the split that comes first
            continue
        if len(splits) == 1 or _has_labels(source):
            return source, split
        unlabelled = unlabelled or (source, split)
    if unlabelled is not None:
        return unlabelled
    if spec.startswith("folder:"):
        raise FileNotFoundError(
            f"{missing}. k-NN classifies the images of 'test' by those of 'train': move a share of "
            "each class there, or name other images with --config.data.source=SOURCE"
        )
    raise missing


def _has_labels(source: Source) -> bool:
    """Whether the first readable image has a label; TFDS writes −1 where there is none."""
    if source.num_classes is None:
        return False
    for index in range(len(source)):
        try:
            return source[index][1] >= 0
        except UnreadableImage:
            continue
    return False


def _check_classes(bank: Source, queries: Source, split: str) -> None:
    """A label is a position in the list of classes, so both lists must be the same."""
    if bank.class_names is None or bank.class_names == queries.class_names:
        return
    in_bank, in_queries = set(bank.class_names), set(queries.class_names or ())
    extra, where = sorted(in_queries - in_bank), split
    if not extra:
        extra, where = sorted(in_bank - in_queries), BANK_SPLIT
    raise ValueError(
        f"the splits have different classes: only {where!r} has {', '.join(map(repr, extra[:3]))}"
        f"{', …' if len(extra) > 3 else ''}; expected the same classes in both"
    )
