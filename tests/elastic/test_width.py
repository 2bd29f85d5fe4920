"""One elastic dimension: sizes, dependent dimensions, α, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax.elastic.width import Width


def test_size_is_the_traced_part_where_there_is_one():
    assert Width(48).size == 48
    assert Width(64, jnp.int32(48)).size == 48


def test_alpha_is_the_ratio_of_widths_and_one_for_the_intact_network():
    assert Width(48).alpha(64) == 64 / 48
    assert Width(64).alpha(64) == 1
    for width in (16, 32, 48, 64):
        masked = Width(64, jnp.int32(width)).alpha(64)
        assert masked.dtype == jnp.float32
        np.testing.assert_array_equal(masked, np.float32(64 / width))


def test_dependent_dimensions_are_exact_integers(golden):
    # Float arithmetic loses one hidden channel for these; integers do not.
    for max_width, width, truncated in golden("networks")[
        "mlp_hidden_truncated/max_width_w_hidden"
    ]:
        full = 4 * int(max_width)
        assert truncated == 4 * width - 1
        assert Width(int(width)).scaled(full, int(max_width)).size == 4 * width
    masked = Width(1024, jnp.int32(704)).scaled(4096, 1024)
    assert (masked.bound, int(masked.size)) == (4096, 2816)
    assert Width(96).scaled(8).size == 768
    assert Width(64, jnp.int32(48)).scaled(1, 16).active == 3


def test_mask_is_true_for_the_channels_in_use():
    np.testing.assert_array_equal(Width(3).mask(), [True] * 3)
    np.testing.assert_array_equal(Width(5, jnp.int32(3)).mask(), [True] * 3 + [False] * 2)


def test_bound_is_static_and_active_is_traced():
    seen = []

    @jax.jit
    def program(width):
        seen.append(width.bound)
        return width.mask().sum()

    assert [program(Width(64, jnp.int32(w))) for w in (16, 32, 48)] == [16, 32, 48]
    assert program(Width(32)) == 32
    assert seen == [64, 32]
    with pytest.raises(AttributeError):
        Width(3).bound = 4
