"""Which sub-networks exist, how often each is drawn, and which blocks each keeps."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, order=True)
class Subnet:
    """One sub-network: its first-stage width and the blocks kept in each stage."""

    width: int
    depths: tuple[int, ...]

    def __str__(self) -> str:
        return f"w{self.width}-d{'.'.join(map(str, self.depths))}"

    @staticmethod
    def from_name(name: str) -> "Subnet | None":
        """Read a name like `w384-d12` or `w96-d2.2.6.2`; None if it is not of that form."""
        match = re.fullmatch(r"w(\d+)-d(\d+(?:\.\d+)*)", name)
        if match is None:
            return None
        return Subnet(int(match[1]), tuple(int(d) for d in match[2].split(".")))


def kept_blocks(depth: int, max_depth: int) -> tuple[int, ...]:
    """Return the blocks a sub-network of `depth` keeps: floor((max − 1)·j / (depth − 1)).

    Evenly spread, first and last always among them (paper eq. 7). In integers, because the
    float form of the official code rounds down for 31 → 23 and 31 → 27.
    """
    if not 1 <= depth <= max_depth:
        raise ValueError(f"a depth of {depth} is not within 1..{max_depth}")
    if depth == 1:
        return (0,)
    return tuple((max_depth - 1) * j // (depth - 1) for j in range(depth))


def depth_mask(depths: Sequence[int], max_depths: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return, for each stage, (max depth,) booleans: True where the block runs."""
    masks = []
    for depth, max_depth in zip(depths, max_depths, strict=True):
        mask = np.zeros(max_depth, bool)
        mask[list(kept_blocks(depth, max_depth))] = True
        masks.append(mask)
    return tuple(masks)


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The sub-networks of a supernet, in the official order: the intact network comes last.

    Attributes:
      subnets: every sub-network once.
      multiplicities: how often each stands in the list that training draws from.
      aliases: short names, for example {"small": Subnet(384, (12,))}; a grid always has
        "smallest" and "intact".
    """

    subnets: tuple[Subnet, ...]
    multiplicities: tuple[int, ...]
    aliases: Mapping[str, Subnet] = dataclasses.field(default_factory=dict)

    @classmethod
    def grid(
        cls,
        widths: Sequence[int],
        depths: Sequence[Sequence[int]],
        width_scale: float,
        depth_scale: float,
        aliases: Mapping[str, Subnet] | None = None,
    ) -> "SearchSpace":
        """Combine widths with the depth choices of each stage.

        Networks are ordered by width, then by total depth. With n_w widths and n_d depth
        choices, network (i, j) stands round(lin(S_w→1)[i] · lin(S_d→1)[j]) times in the list
        (paper eq. 14 in integers, as the official code has it).

        Raises:
          ValueError: for no width or no depth, or one below 1.
        """
        tuples = sorted(itertools.product(*depths), key=sum)
        if not widths or not tuples:
            raise ValueError("a search space needs at least one width and one depth")
        for name, size in (("width", min(widths)), ("depth", min(map(min, depths)))):
            if size < 1:
                raise ValueError(f"a {name} of {size} is no network, expected at least 1")
        width_weight = np.linspace(width_scale, 1, len(widths))
        depth_weight = np.linspace(depth_scale, 1, len(tuples))
        subnets = tuple(Subnet(w, d) for w in widths for d in tuples)
        counts = tuple(int(c) for c in np.round(np.outer(width_weight, depth_weight)).ravel())
        named = {"smallest": subnets[0], "intact": subnets[-1], **(aliases or {})}
        present = {name: subnet for name, subnet in named.items() if subnet in subnets}
        return cls(subnets, counts, present)

    def __len__(self) -> int:
        return len(self.subnets)

    def __iter__(self) -> Iterator[Subnet]:
        return iter(self.subnets)

    def __getitem__(self, index: int) -> Subnet:
        return self.subnets[index]

    def __contains__(self, subnet: object) -> bool:
        return subnet in self.subnets

    @property
    def intact(self) -> Subnet:
        """The whole network."""
        return self.subnets[-1]

    @property
    def smallest(self) -> Subnet:
        """The narrowest, shallowest network."""
        return self.subnets[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width once, narrowest first."""
        return tuple(sorted({s.width for s in self.subnets}))

    def multiplicity(self, subnet: Subnet) -> int:
        """Return how often `subnet` stands in the list of candidates."""
        return self.multiplicities[self.subnets.index(subnet)]

    @property
    def candidates(self) -> tuple[Subnet, ...]:
        """Every network as often as its multiplicity; the official list, intact network last."""
        pairs = zip(self.subnets, self.multiplicities, strict=True)
        return tuple(s for s, count in pairs for _ in range(count))

    @property
    def pool(self) -> tuple[Subnet, ...]:
        """What training draws from: the candidates without their last entry, the intact one."""
        return self.candidates[:-1] or self.candidates

    def draw(self, seed: int, stream: int, index: int) -> Subnet:
        """Return draw number `index` of a stream: shuffled, without replacement.

        The pool is shuffled anew each time it is used up. The draw depends on nothing but its
        arguments, so a resumed run, or one on other hardware, draws the same networks.
        """
        return draw(self.pool, seed, stream, index)

    def parse(self, name: str) -> Subnet:
        """Return the sub-network of a name (`w384-d12`) or alias (`small`).

        Raises:
          ValueError: for a name that is not in the space; names the nearest that is.
        """
        if name in self.aliases:
            return self.aliases[name]
        subnet = Subnet.from_name(name)
        if subnet in self.subnets:
            return subnet
        raise ValueError(
            f"no sub-network '{name}' in this space of {len(self)} "
            f"({self.smallest} to {self.intact}); did you mean '{self._nearest(name, subnet)}'?"
        )

    def _nearest(self, name: str, subnet: Subnet | None) -> str:
        same_stages = subnet is not None and len(subnet.depths) == len(self.intact.depths)
        if same_stages:

            def distance(other: Subnet) -> tuple[int, int]:
                gaps = zip(other.depths, subnet.depths, strict=True)
                return abs(other.width - subnet.width), sum(abs(a - b) for a, b in gaps)

            return str(min(self.subnets, key=distance))
        names = [*self.aliases, *map(str, self.subnets)]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        return close[0]

    def parse_many(self, names: str) -> tuple[Subnet, ...]:
        """Return the sub-networks of `all`, or of a comma-separated list of names."""
        if names == "all":
            return self.subnets
        return tuple(self.parse(name.strip()) for name in names.split(","))


def draw(pool: Sequence[Subnet], seed: int, stream: int, index: int) -> Subnet:
    """Return entry `index` of the endless sequence of reshuffled copies of `pool`."""
    round_, position = divmod(index, len(pool))
    order = np.random.default_rng([seed, 0x5B, stream, round_]).permutation(len(pool))
    return pool[order[position]]
