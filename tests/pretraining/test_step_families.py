"""The update of Swin and ResNet against official losses and gradient sizes of each parameter."""

import functools

import golden_params
import golden_resnet
import golden_swin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import under
from golden_step import OFFICIAL, batch, hyper

from poa_jax.elastic.space import Subnet
from poa_jax.models.heads import MultiHead
from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.pretraining.losses import Weights
from poa_jax.pretraining.optimizer import init_optimizer
from poa_jax.pretraining.state import TrainState, make_draw
from poa_jax.pretraining.step import Recipe, losses_and_grads

HEADS = MultiHead(width=512, prototypes=(32, 48), hidden=40, bottleneck=24)


def swin():
    backbone = Swin(
        image_size=64, width=64, depths=(2, 2, 4, 2), window=4, official_patch_norm=True
    )
    nets = [Subnet(48, (2, 2, 3, 2)), Subnet(32, (2, 2, 2, 2))]
    return backbone, (64,), (32, 48, 64), nets


def resnet():
    backbone = ResNet(image_size=64, width=32, depths=(2, 2, 3, 2), stem=16, groups=4)
    nets = [Subnet(24, (1, 2, 2, 1)), Subnet(16, (1, 1, 1, 1))]
    return backbone, (32,), (16, 20, 24, 28, 32), nets


FAMILIES = {
    "swin": (swin, golden_swin.backbone, golden_swin.backbone_path),
    "resnet": (
        resnet,
        golden_resnet.resnet_backbone,
        golden_resnet.backbone_path,
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def grads(fixed, *args):
    return losses_and_grads(fixed, *args, None, None)


def gradient_of(tree, name, to_path):
    """Return our gradient of an official parameter, flat; None if the network has none."""
    top, rest = name.split(".", 1)
    if top == "backbone":
        found, leaf = to_path(rest), tree["backbone"]
    else:
        found, leaf = golden_params.head_path(rest), tree["heads"]
    if found is None:
        return None
    path, block = found
    for key in path.split("/"):
        leaf = leaf[key]
    return np.asarray(leaf if block is None else leaf[block], np.float64).reshape(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradient_sizes_equal_the_official_step(golden, family):
    make, to_params, to_path = FAMILIES[family]
    stored = golden(f"step_{family}")
    backbone, bounds, widths, nets = make()
    fixed = Recipe(backbone, HEADS, bounds, widths, max_masked=20, weights=Weights())
    body = to_params(under(golden(family), "param/"))
    student = {"backbone": body, "heads": golden_params.heads(under(stored, "student_head/"))}
    teacher = {"backbone": body, "heads": golden_params.heads(under(stored, "teacher_head/"))}
    student, teacher = jax.tree.map(jnp.asarray, (student, teacher))
    centres = {n: [jnp.zeros(k) for k in HEADS.prototypes] for n in ("cls", "patch")}
    state = TrainState(jnp.int32(0), student, teacher, init_optimizer(student), centres)
    names = [str(n) for n in stored["param_names"]]
    compared = 0
    for case in ("ibot", "noibot"):
        for i, net in enumerate(nets):
            draw = make_draw(net, bounds, backbone.max_depths)
            found, summands, parts, _ = grads(
                fixed, state, batch(stored), draw, hyper(case == "ibot")
            )
            expected = under(stored, f"{case}/net{i}/")
            np.testing.assert_allclose(summands["loss/total"], expected["total"], atol=1e-5)
            np.testing.assert_allclose(parts["koleo"], expected["loss/koleo_loss"], atol=1e-5)
            for ours, official in OFFICIAL.items():
                for head in (0, 1):
                    value = expected.get(f"loss/{official}_{head}", 0.0)
                    np.testing.assert_allclose(parts[ours][head], value, atol=1e-5)
            found = jax.device_get(found)
            for name, l2, total in zip(
                names, expected["grad_l2"], expected["grad_sum"], strict=True
            ):
                grad = gradient_of(found, name, to_path)
                if grad is None:
                    assert np.nan_to_num(l2) == 0
                    continue
                # Entries that cancel to nothing are rounding in both.
                norm = np.linalg.norm(grad)
                np.testing.assert_allclose(norm, l2, rtol=1e-5, atol=1e-6, err_msg=name)
                np.testing.assert_allclose(grad.sum(), total, atol=5e-4, err_msg=name)
                compared += 1
    assert compared >= 4 * 100
