"""Weighted k-nearest-neighbour classification by the paper's protocol, exact and in blocks.

Features are L2-normalised, so a dot product is the cosine similarity s. With s_1 ≥ s_2 ≥ … those of
a query's nearest neighbours in the bank, k_max the largest k asked for and τ the temperature,

    w_i = exp(s_i / τ) / Σ_{j ≤ k_max} exp(s_j / τ)
    p_k(class) = Σ_{i ≤ k, label_i = class} w_i

so the probabilities of a smaller k do not sum to 1, as in the official code; the best class is the
same. The bank is the labelled training set, the query the images to classify. No array of queries
× bank exists: both are taken in blocks, and only the best k_max of each query are kept.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
BLOCK = 2048  # images of the bank compared at once
QUERY_BLOCK = 256  # queries compared at once


def usable_ks(ks: Sequence[int], bank_size: int) -> tuple[tuple[int, ...], str | None]:
    """Return the ks that a bank of `bank_size` images can serve, rising, and a note or None.

    A k above the size of the bank becomes that size; the note says so. Raises ValueError for a k
    below 1 and for an empty bank.
    """
    if bank_size < 1:
        raise ValueError("k-NN needs at least one labelled image to compare with, and got none")
    if not ks or min(ks) < 1:
        raise ValueError(f"k-NN needs numbers of neighbours of 1 or more, not {tuple(ks)}")
    usable = tuple(sorted({min(k, bank_size) for k in ks}))
    large = sorted({k for k in ks if k > bank_size})
    if not large:
        return usable, None
    named = ", ".join(map(str, large))
    return usable, f"k = {named} is more than the {bank_size} labelled images; used {bank_size}"


def pixels(images_BHWC: np.ndarray) -> jax.Array:
    """Return raw pixels as features (B, H·W·C), float32 in [0, 1]: the baseline of no network."""
    return jnp.asarray(images_BHWC, jnp.float32).reshape(len(images_BHWC), -1) / 255.0


def normalise(x_XD: jax.Array) -> jax.Array:
    """Scale each feature vector to length 1, in float32; a zero vector stays zero."""
    x_XD = x_XD.astype(jnp.float32)
    return x_XD / jnp.maximum(jnp.linalg.norm(x_XD, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("k", "block", "query_block"))
def neighbours(
    bank_BD: jax.Array,
    labels_B: jax.Array,
    query_BD: jax.Array,
    *,
    k: int,
    block: int = BLOCK,
    query_block: int = QUERY_BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Return the k nearest of the bank: cosine similarity (Q, k) falling, and label (Q, k) int32.

    `k` is at most the size of the bank. Of equal similarities the earlier image of the bank wins.
    """
    bank = _blocks(normalise(bank_BD), labels_B, block)
    search = partial(_nearest, *bank, k=k)
    return _by_block(search, normalise(query_BD), query_block)


@partial(jax.jit, static_argnames=("num_classes", "ks", "block", "query_block"))
def predict(
    bank_BD: jax.Array,
    labels_B: jax.Array,
    query_BD: jax.Array,
    *,
    num_classes: int,
    ks: tuple[int, ...] = KS,
    temperature: float = TEMPERATURE,
    block: int = BLOCK,
    query_block: int = QUERY_BLOCK,
) -> dict[int, jax.Array]:
    """Return the class probabilities {k: (Q, num_classes)} of the queries, float32.

    Labels are whole numbers in [0, num_classes). A k above the size of the bank is clipped to it,
    and is then the key of the result (`usable_ks` says so in words).
    """
    ks, _ = usable_ks(ks, len(bank_BD))
    bank = _blocks(normalise(bank_BD), labels_B, block)

    def classify(query_BD):
        similarity_BK, label_BK = _nearest(*bank, query_BD, k=ks[-1])
        return _votes(similarity_BK, label_BK, num_classes, ks, temperature)

    return _by_block(classify, normalise(query_BD), query_block)


@partial(jax.jit, static_argnames=("num_classes", "ks", "block", "query_block"))
def accuracies(
    bank_SBD: jax.Array,
    labels_B: jax.Array,
    query_SBD: jax.Array,
    query_labels_B: jax.Array,
    *,
    num_classes: int,
    ks: tuple[int, ...] = KS,
    temperature: float = TEMPERATURE,
    block: int = BLOCK,
    query_block: int = QUERY_BLOCK,
) -> dict[int, jax.Array]:
    """Return the share of queries classified rightly, {k: (S,)}, for S sub-networks' features.

    One program for all of them, one sub-network at a time. All else as in `predict`.
    """

    def one(features):
        bank_BD, query_BD = features
        probs = predict(
            bank_BD,
            labels_B,
            query_BD,
            num_classes=num_classes,
            ks=ks,
            temperature=temperature,
            block=block,
            query_block=query_block,
        )
        return {k: accuracy(probs_BK, query_labels_B) for k, probs_BK in probs.items()}

    return jax.lax.map(one, (bank_SBD, query_SBD))


def accuracy(probs_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Return the share of rows whose largest probability is the label's, float32 in [0, 1]."""
    right_B = jnp.argmax(probs_BK, axis=-1) == jnp.asarray(labels_B, jnp.int32)
    return jnp.mean(right_B.astype(jnp.float32))


def best(accuracy_of_k: Mapping[int, float]) -> tuple[int, float]:
    """Return the k with the highest accuracy, the smallest such k, and that accuracy."""
    k = min(accuracy_of_k, key=lambda k: (-accuracy_of_k[k], k))
    return k, float(accuracy_of_k[k])


def _blocks(bank_BD, labels_B, block):
    """Cut the bank into (blocks, block, …) with what is real in it; the last block is filled up."""
    size = len(bank_BD)
    block = min(block, size)
    fill = -size % block
    bank = jnp.pad(bank_BD, ((0, fill), (0, 0))).reshape(-1, block, bank_BD.shape[-1])
    labels = jnp.pad(labels_B.astype(jnp.int32), (0, fill)).reshape(-1, block)
    real = (jnp.arange(size + fill) < size).reshape(-1, block)
    return bank, labels, real


def _nearest(bank, labels, real, query_BD, *, k):
    """Go over the bank's blocks, keeping the best k of each query so far."""
    rows = len(query_BD)
    start = (jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32))

    def merge(kept, one_block):
        bank_BD, labels_B, real_B = one_block
        similarity = jnp.einsum("qd,bd->qb", query_BD, bank_BD, precision=jax.lax.Precision.HIGHEST)
        similarity = jnp.where(real_B[None, :], similarity, -jnp.inf)
        label = jnp.broadcast_to(labels_B[None, :], similarity.shape)
        # What is kept stands first: top_k prefers the earlier of equals, as over the whole bank.
        similarity = jnp.concatenate([kept[0], similarity], axis=1)
        label = jnp.concatenate([kept[1], label], axis=1)
        top, position = jax.lax.top_k(similarity, k)
        return (top, jnp.take_along_axis(label, position, axis=1)), None

    return jax.lax.scan(merge, start, (bank, labels, real))[0]


def _votes(similarity_BK, label_BK, num_classes, ks, temperature):
    weight_BK = jax.nn.softmax(similarity_BK / temperature, axis=1)
    classes = jnp.arange(num_classes)[None, None, :]
    probs, total, done = {}, 0.0, 0
    for k in ks:
        # Comparing with every class and adding up fuses into one pass, with no one-hot array.
        mine = label_BK[:, done:k, None] == classes
        total = total + jnp.sum(jnp.where(mine, weight_BK[:, done:k, None], 0.0), axis=1)
        probs[k], done = total, k
    return probs


def _by_block(function, query_BD, query_block):
    """Apply `function` to blocks of queries, one after another; the last one is filled up."""
    size = len(query_BD)
    if size < 1:
        raise ValueError("k-NN needs at least one image to classify, and got none")
    query_block = min(query_block, size)
    padded = jnp.pad(query_BD, ((0, -size % query_block), (0, 0)))
    out = jax.lax.map(function, padded.reshape(-1, query_block, padded.shape[-1]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], out)
