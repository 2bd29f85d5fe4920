"""Position tables resized the way the official code resizes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_A = -0.75  # PyTorch's cubic convolution coefficient
_OFFSET = 0.1  # added to the new size before the sampling step is taken, as DINO does


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at distance |x|."""
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Return the (new, old) float32 matrix of a one-axis bicubic resize.

    Half-pixel centres, border clamped, no antialiasing. The sampling step is old / (new + 0.1):
    the official code passes scale factors with that offset, and PyTorch uses them for the
    coordinates too.
    """
    centre = (np.arange(new) + 0.5) * (old / (new + _OFFSET)) - 0.5
    start = np.floor(centre).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        column = np.clip(start + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), column), _cubic(centre - (start + tap)))
    return matrix.astype(np.float32)


def resize_positions(table_1ND: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Resize a position table (1, 1 + n², D), CLS first, to a grid of patches (rows, columns).

    Returns (1, 1 + rows · columns, D). The CLS row is not touched, and the table is returned as
    it is for its own square grid.

    Raises:
      ValueError: if the table does not belong to a square grid.
    """
    side = round((table_1ND.shape[1] - 1) ** 0.5)
    if side * side != table_1ND.shape[1] - 1:
        raise ValueError(f"{table_1ND.shape[1] - 1} patch positions do not form a square grid")
    if grid == (side, side):
        return table_1ND
    patches = table_1ND[0, 1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(bicubic_matrix(side, n), table_1ND.dtype) for n in grid)
    patches = jnp.einsum("yi,xj,ijd->yxd", rows, columns, patches)
    return jnp.concatenate([table_1ND[:, :1], patches.reshape(1, grid[0] * grid[1], -1)], axis=1)
