"""k-NN accuracy of some or all sub-networks of a run, beside their untrained selves and pixels."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from poa_jax.data.sources import Source
from poa_jax.elastic.space import Subnet
from poa_jax.elastic.width import Width
from poa_jax.evaluation import knn
from poa_jax.evaluation.datasets import BANK_SPLIT, labelled_batches, open_bank_and_queries
from poa_jax.evaluation.features import by_width, extract_features
from poa_jax.models import build
from poa_jax.pretraining.state import init_params
from poa_jax.supernet import Supernet

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How k-NN is measured: paper section 4.1.

    Attributes:
      resize: pixels of the shorter side before the centre crop.
      crop: pixels of the centre crop.
      neighbours: the k's.
      temperature: of the votes.
      batch_size: images at once.
      workers: threads that read images ahead.
      max_bad_fraction: share of unreadable images, which are left out, that is put up with.
    """

    resize: int
    crop: int
    neighbours: tuple[int, ...]
    temperature: float
    batch_size: int
    workers: int = 2
    max_bad_fraction: float = 0.01

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Protocol":
        """Take the protocol from `config.eval` and `config.data`."""
        e, data = config.eval, config.data
        return cls(
            e.resize,
            config.model.image_size,
            tuple(e.neighbours),
            e.temperature,
            e.batch_size,
            data.workers,
            data.max_bad_fraction,
        )

    def batches(self, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yield (images, labels, how many of them count) of a labelled source."""
        return labelled_batches(
            source, self.resize, self.crop, self.batch_size, self.workers, self.max_bad_fraction
        )


def knn_sweep(
    net: Supernet,
    subnets: Sequence[Subnet],
    bank: Source,
    queries: Source,
    protocol: Protocol,
    *,
    untrained: Any | None = None,
    say: Callable[[str], None] = print,
) -> list[Report]:
    """Return one record a sub-network: name, sizes, accuracy for every k, the best k.

    Args:
      net: the supernet.
      subnets: which of its sub-networks; one named twice is measured once.
      bank: labelled images to compare with.
      queries: labelled images to classify.
      protocol: sizes and constants.
      untrained: parameters of the supernet before training; adds `untrained` to each record.
      say: told about progress, a sentence a width.

    Raises:
      ValueError: for images without labels, or too many unreadable ones.
    """
    _, note = knn.usable_ks(protocol.neighbours, len(bank))
    if note:
        say(note)
    sets = [net.params] if untrained is None else [net.params, untrained]
    records: dict[Subnet, Report] = {}
    images = len(sets) * (len(bank) + len(queries))
    wide = lambda width: net.model.feature_width(Width(width)).bound  # noqa: E731
    for width, group in by_width(subnets, images, feature_width=wide):
        say(f"width {width}: {len(group)} sub-networks")
        (compared, labels), (asked, true_labels) = (
            extract_features(net, sets, group, protocol.batches(source), len(source))
            for source in (bank, queries)
        )
        for i, subnet in enumerate(group):
            # One at a time on the device; the program is the same for the whole width.
            found = [
                _accuracies(b[i], labels, q[i], true_labels, bank.num_classes, protocol)
                for b, q in zip(compared, asked, strict=True)
            ]
            records[subnet] = _record(net, subnet, protocol.crop, *found)
    return [records[s] for s in dict.fromkeys(subnets)]


def _accuracies(bank_BD, labels_B, query_BD, query_labels_B, num_classes, protocol):
    found = knn.accuracies(
        jnp.asarray(bank_BD[None]),
        jnp.asarray(labels_B),
        jnp.asarray(query_BD[None]),
        jnp.asarray(query_labels_B),
        num_classes=num_classes,
        ks=protocol.neighbours,
        temperature=protocol.temperature,
    )
    return {k: float(accuracy_S[0]) for k, accuracy_S in found.items()}


def _record(
    net: Supernet,
    subnet: Subnet,
    image_size: int,
    trained: dict[int, float],
    untrained: dict[int, float] | None = None,
) -> Report:
    cost = net.cost(subnet, image_size)
    k, accuracy = knn.best(trained)
    record = {
        "name": str(subnet),
        "width": subnet.width,
        "depths": list(subnet.depths),
        "params": cost.params,
        "macs": cost.macs,
        "knn": accuracy,
        "best_k": k,
        "knn_of_k": {str(k): a for k, a in trained.items()},
    }
    if untrained is not None:
        record["untrained"] = knn.best(untrained)[1]
    return record


def knn_of_pixels(bank: Source, queries: Source, protocol: Protocol) -> float:
    """Return the best k-NN accuracy of raw pixels under the same protocol."""
    (compared, labels), (asked, true_labels) = (_pixels(s, protocol) for s in (bank, queries))
    found = _accuracies(compared, labels, asked, true_labels, bank.num_classes, protocol)
    return knn.best(found)[1]


def _pixels(source: Source, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = [], []
    for images, label, valid in protocol.batches(source):
        rows.append(np.asarray(knn.pixels(images[:valid])))
        labels.append(label[:valid])
    return np.concatenate(rows), np.concatenate(labels)


def evaluate(
    config: ml_collections.ConfigDict,
    net: Supernet,
    subnets: Sequence[Subnet],
    *,
    baselines: bool = False,
    split: str | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Measure k-NN on the configured data: bank = its training split, queries = its test split.

    Args:
      config: that of the run; `eval` and `data.source` may differ.
      net: the run's supernet.
      subnets: which of its sub-networks.
      baselines: also measure the parameters this run started from, and raw pixels.
      split: the split to classify; see `datasets.open_bank_and_queries`.
      say: told about progress.

    Returns:
      A record that says all it takes to get the numbers again: checkpoint, data, transform,
      protocol, versions, and `results`, one record a sub-network.
    """
    bank, queries, split = open_bank_and_queries(config.data.source, split)
    protocol = Protocol.from_config(config)
    untrained = first_params(config, net) if baselines else None
    results = knn_sweep(net, subnets, bank, queries, protocol, untrained=untrained, say=say)
    report = {
        "task": "knn",
        "checkpoint": {"step": net.step, "branch": "teacher", "sha256": sha256(net.params)},
        "data": {
            "source": config.data.source,
            "bank": _describe(bank, BANK_SPLIT),
            "queries": _describe(queries, split),
        },
        "transform": {
            "shorter_side": protocol.resize,
            "interpolation": "bicubic with antialiasing",
            "centre_crop": protocol.crop,
            "mean": list(net.mean),
            "std": list(net.std),
        },
        "protocol": {
            "features": "class feature after the final norm, scaled to length 1",
            "votes": "exp(cosine similarity / temperature) of the k nearest",
            "neighbours": list(protocol.neighbours),
            "temperature": protocol.temperature,
            "reported": "the best k on the queries",
        },
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
        "dtype": config.model.dtype,
        "results": results,
    }
    if baselines:
        report["pixels"] = knn_of_pixels(bank, queries, protocol)
    return report


def _describe(source: Source, split: str) -> Report:
    return {"split": split, "images": len(source), "fingerprint": source.fingerprint}


def first_params(config: ml_collections.ConfigDict, net: Supernet) -> Any:
    """Return the backbone's parameters that a run of `config` starts from."""
    heads, size = build.heads(config), net.model.image_size
    return jax.jit(lambda: init_params(net.model, heads, size, config.seed))()["backbone"]


def sha256(params: Any) -> str:
    """Return a hash of every parameter's path, type, shape and bytes: the identity of a network."""
    digest = hashlib.sha256()
    for path, value in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
