"""Which sub-network each device trains at each step."""

import jax
import ml_collections

from poa_jax.elastic.space import SearchSpace
from poa_jax.elastic.space import draw as draw_subnet
from poa_jax.pretraining.state import Draw, make_draw, stack_draws
from poa_jax.pretraining.step import Recipe


class DrawSequence:
    """The sub-networks of each step, one for each local device; a pure function of (seed, step).

    "per_device": every device draws from a stream of its own (the paper); "shared": all run the
    network of stream 0. With "per_device" another number of devices means other streams, so only
    a "shared" run trains the same networks on any number of devices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        space: SearchSpace,
        recipe: Recipe,
        devices: int,
    ) -> None:
        local = devices // jax.process_count()
        first = local * jax.process_index()
        shared = config.elastic.draw == "shared"
        self._streams = [0 if shared else first + i for i in range(local)]
        self._seed, self._pool, self._recipe = config.seed, space.pool, recipe

    def at(self, step: int) -> Draw:
        """Return the draws of a step, stacked over local devices."""
        subnets = [draw_subnet(self._pool, self._seed, s, step) for s in self._streams]
        depths = self._recipe.backbone.max_depths
        return stack_draws([make_draw(s, self._recipe.bounds, depths) for s in subnets])
