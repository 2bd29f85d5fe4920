"""Every family of backbones against the checks of `elastic_conformance.py`: one row each."""

import conformance_training
import elastic_conformance as conformance
import pytest

from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.models.heads import MultiHead
from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.models.vit import ViT


def space(*subnets):
    """Return a space of three: of each family another takes long to compile."""
    return SearchSpace(subnets, (1,) * len(subnets))


VIT = conformance.Row(
    name="vit",
    backbone=ViT(image_size=32, patch_size=8, width=48, depth=5, head_dim=8, drop_path=0.3),
    heads=MultiHead(width=48, prototypes=(12, 20), hidden=24, bottleneck=16),
    space=SearchSpace.grid((16, 32, 48), [(3, 5)], 3, 3),
    local_size=16,
    published=ViT(image_size=224, patch_size=16, width=1024, depth=24),
    published_sizes=(Subnet(384, (12,)), Subnet(768, (12,)), Subnet(1024, (24,))),
    cost_table="poa_cost_vit.csv",
    subnet_of=lambda line: Subnet(int(line["width"]), (int(line["depth"]),)),
)
SWIN = conformance.Row(
    name="swin",
    backbone=Swin(
        image_size=64, patch_size=4, width=32, depths=(1, 2, 4, 2), window=3, head_dim=8,
        drop_path=0.3,
    ),
    heads=MultiHead(width=256, prototypes=(12, 20), hidden=24, bottleneck=16),
    space=space(Subnet(16, (1, 2, 3, 2)), Subnet(32, (1, 2, 3, 2)), Subnet(32, (1, 2, 4, 2))),
    local_size=32,
    published=Swin(image_size=224, width=128, depths=(2, 2, 18, 2)),
    published_sizes=tuple(Subnet(w, (2, 2, d, 2)) for w, d in ((96, 6), (96, 18), (128, 18))),
    cost_table="poa_cost_swin.csv",
    subnet_of=lambda line: Subnet(int(line["width"]), (2, 2, int(line["s3_depth"]), 2)),
    sparse=("bias_table",),
    spread=0.08,
)  # fmt: skip
RESNET = conformance.Row(
    name="resnet",
    backbone=ResNet(image_size=64, width=16, depths=(1, 3, 2, 1), stem=8, groups=4),
    heads=MultiHead(width=256, prototypes=(12, 20), hidden=24, bottleneck=16),
    space=space(Subnet(8, (1, 2, 1, 1)), Subnet(16, (1, 3, 1, 1)), Subnet(16, (1, 3, 2, 1))),
    local_size=32,
    published=ResNet(image_size=224, width=128, depths=(3, 8, 36, 3)),
    published_sizes=tuple(Subnet(64, (3, a, b, 3)) for a, b in ((4, 6), (4, 23), (8, 36))),
    cost_table="poa_cost_resnet.csv",
    subnet_of=lambda line: Subnet(
        int(line["mid_width"]), (3, int(line["depth2"]), int(line["depth3"]), 3)
    ),
    alive=0.5,  # units that ReLU keeps at zero for every image have no gradient
)
ROWS = (VIT, SWIN, RESNET)

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_subnet = pytest.mark.parametrize(
    ("row", "subnet"),
    [pytest.param(row, subnet, id=f"{row.name}-{subnet}") for row in ROWS for subnet in row.space],
)


@each_subnet
def test_masked_sliced_and_extracted_agree(row, subnet):
    conformance.check_masked_sliced_and_extracted_agree(row, subnet)


@each_subnet
def test_gradient_is_exactly_zero_outside_the_subnetwork(row, subnet):
    conformance.check_gradient_stays_inside(row, subnet)


@each_subnet
def test_extracted_parameters_fit_the_static_network(row, subnet):
    conformance.check_extracted_parameters_fit_the_static_network(row, subnet)


@each_subnet
def test_bfloat16_stays_close_to_float32(row, subnet):
    conformance.check_bfloat16_stays_close(row, subnet)


@each_row
def test_one_compilation_serves_all_depths_of_a_bound(row):
    conformance.check_one_compilation_per_bound(row)


@each_row
def test_features_of_an_image_do_not_depend_on_other_images(row):
    conformance.check_images_do_not_see_each_other(row)


@each_row
def test_stochastic_depth_drops_the_same_samples_masked_and_sliced(row):
    conformance.check_stochastic_depth_is_the_same_masked_and_sliced(row)


@each_row
def test_published_sizes_have_the_expected_shapes(row):
    conformance.check_published_sizes(row)


@each_row
def test_sweep_of_all_depths_equals_each_network_alone(row):
    conformance.check_sweep_equals_each_network_alone(row)


@each_row
def test_cost_of_every_published_network_equals_the_table(row):
    conformance.check_cost_equals_the_table(row)


@each_row
def test_training_lowers_the_loss_resumes_exactly_and_gives_networks_that_load(row, tmp_path):
    conformance_training.check_training(row, tmp_path)
