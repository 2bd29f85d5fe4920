"""Parameters and multiply-adds of a network, counted analytically in exact integers.

Counted: convolutions, linear maps, the two products of attention. Not counted: softmax, norms,
activations, bias additions, the resizing of tables. "FLOPs" elsewhere often means twice this.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """Exact integer cost of one image; add costs with `+`, repeat them with `n * cost`."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.macs + other.macs)

    def __rmul__(self, times: int) -> "Cost":
        return Cost(times * self.params, times * self.macs)


def dense(tokens: int, d_in: int, d_out: int) -> Cost:
    """A linear map with bias, applied to each of `tokens` positions."""
    return Cost(d_in * d_out + d_out, tokens * d_in * d_out)


def attention(tokens: int, width: int) -> Cost:
    """The products q·kᵀ and p·v of full self-attention (no parameters)."""
    return Cost(0, 2 * tokens * tokens * width)


def vector(size: int, count: int = 1) -> Cost:
    """Parameters that cost no multiply-add here: `count` vectors of norms, scales, tokens."""
    return Cost(count * size, 0)
