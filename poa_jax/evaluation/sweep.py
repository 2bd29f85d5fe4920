"""k-NN accuracy of some or all sub-networks of a run, beside their untrained selves and pixels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from poa_jax.data.sources import Source, open_source
from poa_jax.elastic.space import Subnet
from poa_jax.evaluation import knn
from poa_jax.evaluation.features import by_width, extract_features, labelled_images
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
    """

    resize: int
    crop: int
    neighbours: tuple[int, ...]
    temperature: float
    batch_size: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Protocol":
        """Take the protocol from `config.eval`."""
        e = config.eval
        return cls(
            e.resize, config.model.image_size, tuple(e.neighbours), e.temperature, e.batch_size
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
      subnets: which of its sub-networks.
      bank: labelled images to compare with.
      queries: labelled images to classify.
      protocol: sizes and constants.
      untrained: parameters of the supernet before training; adds `untrained` to each record.
      say: told about progress, a sentence a width.
    """
    sets = [net.params] if untrained is None else [net.params, untrained]
    records: dict[Subnet, Report] = {}
    for width, group in by_width(subnets, len(bank) + len(queries)):
        say(f"width {width}: {len(group)} sub-networks")

        def run(source: Source, group: tuple[Subnet, ...] = group):
            batches = labelled_images(source, protocol.resize, protocol.crop, protocol.batch_size)
            return extract_features(net, sets, group, batches)

        bank_features, bank_labels = run(bank)
        query_features, query_labels = run(queries)
        found = [
            _accuracies(b, bank_labels, q, query_labels, bank.num_classes, protocol)
            for b, q in zip(bank_features, query_features, strict=True)
        ]
        for i, subnet in enumerate(group):
            records[subnet] = _record(net, subnet, *(_pick(f, i) for f in found))
    return [records[s] for s in subnets]


def _accuracies(bank, bank_labels, query, query_labels, num_classes, protocol):
    found = knn.accuracies(
        jnp.asarray(bank),
        jnp.asarray(bank_labels),
        jnp.asarray(query),
        jnp.asarray(query_labels),
        num_classes=num_classes,
        ks=protocol.neighbours,
        temperature=protocol.temperature,
    )
    return {k: np.asarray(a) for k, a in found.items()}


def _pick(accuracies: dict[int, np.ndarray], index: int) -> dict[int, float]:
    return {k: float(a[index]) for k, a in accuracies.items()}


def _record(
    net: Supernet,
    subnet: Subnet,
    trained: dict[int, float],
    untrained: dict[int, float] | None = None,
) -> Report:
    cost = net.cost(subnet)
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
    sets = []
    for source in (bank, queries):
        batches = labelled_images(source, protocol.resize, protocol.crop, protocol.batch_size)
        rows, labels = [], []
        for images, label, valid in batches:
            rows.append(np.asarray(knn.pixels(images[:valid])))
            labels.append(label[:valid])
        sets += [np.concatenate(rows)[None], np.concatenate(labels)]
    bank_features, bank_labels, query_features, query_labels = sets
    found = _accuracies(
        bank_features, bank_labels, query_features, query_labels, bank.num_classes, protocol
    )
    return knn.best(_pick(found, 0))[1]


def evaluate(
    config: ml_collections.ConfigDict,
    net: Supernet,
    subnets: Sequence[Subnet],
    *,
    baselines: bool,
    say: Callable[[str], None] = print,
) -> Report:
    """Measure k-NN on the configured data: bank = its training split, queries = its test split.

    Returns:
      A record that says all it takes to get the numbers again: protocol, data, checkpoint step,
      versions, and `results`, one record a sub-network.
    """
    protocol = Protocol.from_config(config)
    bank = open_source(config.data.source, "train")
    queries = open_source(config.data.source, "test")
    untrained = None
    if baselines:
        modules = build.backbone(config), build.heads(config)
        make = jax.jit(lambda: init_params(*modules, config.model.image_size, config.seed))
        untrained = make()["backbone"]
    results = knn_sweep(net, subnets, bank, queries, protocol, untrained=untrained, say=say)
    report = {
        "task": "knn",
        "step": net.step,
        "branch": "teacher",
        "source": config.data.source,
        "images": {"bank": len(bank), "queries": len(queries)},
        "fingerprints": {"bank": bank.fingerprint, "queries": queries.fingerprint},
        "protocol": dataclasses.asdict(protocol),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "results": results,
    }
    if baselines:
        report["pixels"] = knn_of_pixels(bank, queries, protocol)
    return report
