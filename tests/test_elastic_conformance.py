"""Every family of backbones against the checks of `elastic_conformance.py`: one row each."""

import elastic_conformance as conformance
import pytest

from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.models.heads import MultiHead
from poa_jax.models.vit import ViT

VIT = conformance.Row(
    name="vit",
    backbone=ViT(image_size=32, patch_size=8, width=48, depth=5, head_dim=8, drop_path=0.3),
    heads=MultiHead(width=48, prototypes=(12, 20), hidden=24, bottleneck=16),
    space=SearchSpace.grid((16, 32, 48), [(3, 5)], 3, 3),
    local_size=16,
    mask_size=16,
    published=ViT(image_size=224, patch_size=16, width=1024, depth=24),
    published_params={
        Subnet(384, (12,)): 21_674_880,
        Subnet(768, (12,)): 85_817_088,
        Subnet(1024, (24,)): 303_350_784,
    },
)
ROWS = (VIT,)

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
