"""Search spaces against the official lists; the draw; names."""

import collections
import itertools

import numpy as np
import pytest

from poa_jax.elastic.space import SearchSpace, Subnet, depth_mask, draw, kept_blocks

VIT_DEPTHS = range(12, 25)
PUBLISHED = SearchSpace.grid(
    range(384, 1025, 64),
    [VIT_DEPTHS],
    3,
    3,
    {"small": Subnet(384, (12,)), "base": Subnet(768, (12,)), "tiny": Subnet(192, (12,))},
)


def vit(widths, depths, scale):
    return SearchSpace.grid(widths, [depths], scale, scale)


def swin(widths, third, scale):
    return SearchSpace.grid(widths, [(2,), (2,), third, (2,)], scale, scale)


def resnet(widths, depths, scale):
    return SearchSpace.grid(widths, depths, 1, scale)


SPACES = {
    "vit_small": lambda s: vit((32, 48, 64), range(2, 6), s),
    "vit_published": lambda s: vit(range(384, 1025, 64), VIT_DEPTHS, s),
    "vit_published_wint2_dint3": lambda s: vit(range(384, 1025, 128), range(12, 25, 3), s),
    "swin_small": lambda s: swin((32, 48, 64), range(2, 5), s),
    "swin_published": lambda s: swin((96, 112, 128), range(6, 19), s),
    "resnet_small": lambda s: resnet(range(16, 33, 4), [(1, 2), (1, 2), (1, 2, 3), (1, 2)], s),
    "resnet_published": lambda s: resnet((64, 96, 128), [(3,), range(4, 9), range(6, 37), (3,)], s),
}


def official_row(model, subnet):
    """A sub-network as the stored lists write it."""
    if model.startswith("vit"):
        return [subnet.width, *subnet.depths]
    if model.startswith("swin"):
        return [subnet.width, subnet.depths[2]]
    return [subnet.width * 2**stage for stage in range(4)] + list(subnet.depths)


def test_every_candidate_list_equals_the_official_one_in_order(golden):
    arrays = golden("networks")
    lists = [k.removesuffix("/networks") for k in arrays if k.endswith("/networks")]
    assert len(lists) == 17
    for key in lists:
        model, scale = key.split("/scale")
        space = SPACES[model](int(scale))
        rows = [official_row(model, subnet) for subnet in space.candidates]
        np.testing.assert_array_equal(rows, arrays[f"{key}/networks"], err_msg=key)
        counts = {tuple(official_row(model, s)): space.multiplicity(s) for s in space}
        unique = map(tuple, arrays[f"{key}/unique"].tolist())
        assert counts == dict(zip(unique, arrays[f"{key}/count"].tolist(), strict=True))
        assert list(arrays[f"{key}/networks"][-1]) == official_row(model, space.intact)


def test_published_spaces_have_the_published_sizes():
    sizes = {
        ("vit_published", 3): (143, 573),
        ("vit_published", 2): (143, 323),
        ("swin_published", 2): (39, 89),
        ("resnet_published", 2): (465, 699),
    }
    for (model, scale), expected in sizes.items():
        space = SPACES[model](scale)
        assert (len(space), len(space.candidates)) == expected
        assert len(space.pool) == expected[1] - 1


def test_smallest_network_is_drawn_nine_times_as_often_as_the_largest():
    assert PUBLISHED.smallest == Subnet(384, (12,))
    assert PUBLISHED.intact == Subnet(1024, (24,))
    assert PUBLISHED.multiplicity(PUBLISHED.smallest) == 9
    assert PUBLISHED.multiplicity(PUBLISHED.intact) == 1
    assert PUBLISHED.widths == tuple(range(384, 1025, 64))
    assert PUBLISHED[1] == Subnet(384, (13,))
    assert list(PUBLISHED) == list(PUBLISHED.subnets)


def test_intact_network_is_left_out_of_the_pool():
    assert PUBLISHED.intact not in PUBLISHED.pool
    assert PUBLISHED.candidates == (*PUBLISHED.pool, PUBLISHED.intact)
    alone = vit((64,), (2,), 3)
    assert alone.pool == (alone.intact,) * len(alone.pool) != ()


def test_block_choice_equals_the_official_one(golden):
    lists = {k: v for k, v in golden("networks").items() if k.startswith("block_idx/")}
    assert len(lists) == 117
    for key, expected in lists.items():
        _, most, depth = key.split("/")
        kept = kept_blocks(int(depth[1:]), int(most[3:]))
        assert kept == tuple(expected), key


def test_block_choice_is_exact_where_floats_round_down():
    assert kept_blocks(12, 24) == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)
    for depth in (23, 27):
        inexact = tuple(np.linspace(0, 30, depth).astype(int))
        assert kept_blocks(depth, 31) != inexact
        assert kept_blocks(depth, 31) == tuple(30 * j // (depth - 1) for j in range(depth))


def test_block_choice_is_increasing_and_keeps_both_ends():
    for most in range(1, 40):
        assert kept_blocks(most, most) == tuple(range(most))
        assert kept_blocks(1, most) == (0,)
        for depth in range(2, most + 1):
            kept = kept_blocks(depth, most)
            assert len(kept) == depth
            assert (kept[0], kept[-1]) == (0, most - 1)
            assert all(a < b for a, b in itertools.pairwise(kept))


@pytest.mark.parametrize("depth", [0, -1, 6])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"depth of {depth} is not within 1\.\.5"):
        kept_blocks(depth, 5)
    with pytest.raises(ValueError, match=rf"depth of {depth} is not within"):
        depth_mask((depth,), (5,))


def test_spaces_without_networks_are_refused():
    with pytest.raises(ValueError, match="at least one width and one depth"):
        vit((), (2,), 3)
    with pytest.raises(ValueError, match="at least one width and one depth"):
        vit((64,), (), 3)
    with pytest.raises(ValueError, match=r"depth of 0 .* expected at least 1"):
        vit((64,), (0, 1), 3)
    with pytest.raises(ValueError, match=r"width of 0 .* expected at least 1"):
        vit((0, 64), (1,), 3)


def test_depth_mask_marks_the_kept_blocks_of_each_stage():
    masks = depth_mask((1, 2, 3), (1, 2, 5))
    assert [m.tolist() for m in masks] == [
        [True],
        [True, True],
        [True, False, True, False, True],
    ]
    with pytest.raises(ValueError, match="zip"):
        depth_mask((2,), (2, 2))


def test_one_round_draws_every_network_as_often_as_its_multiplicity():
    space = vit((32, 48, 64), range(2, 6), 3)
    size = len(space.pool)
    for round_ in (0, 1, 7):
        drawn = [space.draw(5, 0, round_ * size + i) for i in range(size)]
        expected = collections.Counter(space.candidates)
        expected[space.intact] -= 1
        assert collections.Counter(drawn) == +expected
    rounds = [[space.draw(5, 0, r * size + i) for i in range(size)] for r in (0, 1)]
    assert rounds[0] != rounds[1]
    assert rounds[0] != list(space.pool)


def test_draws_differ_between_devices_and_seeds():
    def sequence(seed, stream):
        return [PUBLISHED.draw(seed, stream, i) for i in range(50)]

    sequences = [sequence(seed, stream) for seed in (0, 1) for stream in range(8)]
    agreement = [
        np.mean([a == b for a, b in zip(x, y, strict=True)])
        for i, x in enumerate(sequences)
        for y in sequences[:i]
    ]
    assert max(agreement) < 0.2


def test_a_draw_depends_on_nothing_but_its_arguments():
    first = [PUBLISHED.draw(3, 2, i) for i in range(5)]
    np.random.default_rng(0).random()
    PUBLISHED.draw(9, 9, 99)
    again = [PUBLISHED.draw(3, 2, i) for i in reversed(range(5))]
    assert again[::-1] == first
    assert [draw(PUBLISHED.pool, 3, 2, i) for i in range(5)] == first


def test_names_are_read_as_they_are_written():
    assert str(Subnet(384, (12,))) == "w384-d12"
    assert str(Subnet(96, (2, 2, 6, 2))) == "w96-d2.2.6.2"
    for subnet in (Subnet(384, (12,)), Subnet(96, (2, 2, 6, 2))):
        assert Subnet.from_name(str(subnet)) == subnet
    for name in ("w384", "384-d12", "w384-d", "w384-d12.", "w384-d12 ", "W384-d12", "w-1-d2", ""):
        assert Subnet.from_name(name) is None
    for subnet in PUBLISHED:
        assert PUBLISHED.parse(str(subnet)) == subnet


def test_aliases_stand_for_networks_that_the_space_has():
    assert PUBLISHED.parse("small") == Subnet(384, (12,))
    assert PUBLISHED.parse("base") == Subnet(768, (12,))
    assert PUBLISHED.parse("intact") == PUBLISHED.intact
    assert PUBLISHED.parse("smallest") == PUBLISHED.smallest
    assert "tiny" not in PUBLISHED.aliases
    assert Subnet(384, (12,)) in PUBLISHED
    assert Subnet(192, (12,)) not in PUBLISHED


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("w390-d12", "w384-d12"),
        ("w384-d11", "w384-d12"),
        ("w2000-d99", "w1024-d24"),
        ("smal", "small"),
        ("w384d12", "w384-d12"),
        ("tiny", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    hint = "" if nearest is None else f"did you mean '{nearest}'"
    with pytest.raises(ValueError, match=f"no sub-network '{name}' in this space of 143.*{hint}"):
        PUBLISHED.parse(name)


def test_a_name_with_the_wrong_number_of_stages_is_refused():
    space = swin((96, 112, 128), range(6, 19), 2)
    assert space.parse("w96-d2.2.6.2") == space.smallest
    with pytest.raises(ValueError, match=r"did you mean 'w96-d2\.2\.6\.2'"):
        space.parse("w96-d2.2.5.2")
    with pytest.raises(ValueError, match="did you mean 'w96-d"):
        space.parse("w96-d6")


def test_lists_of_names():
    assert PUBLISHED.parse_many("all") == PUBLISHED.subnets
    assert PUBLISHED.parse_many("small, w448-d13") == (Subnet(384, (12,)), Subnet(448, (13,)))
    with pytest.raises(ValueError, match="no sub-network 'x'"):
        PUBLISHED.parse_many("small,x")
