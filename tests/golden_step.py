"""The stored batch of a reference step, and the names of its losses."""

import jax.numpy as jnp

from poa_jax.pretraining.schedules import Hyper

OFFICIAL = {
    "cls_local": "dino_local_crops_loss",
    "cls_global": "dino_global_crops_loss",
    "same_view_local": "distill_local_crops_loss",
    "same_view_global": "distill_global_crops_loss",
    "patch": "ibot_loss",
}


def batch(common):
    """Return the stored batch with a leading image axis, as the pipeline hands it out."""

    def image_major(x, crops):
        return jnp.asarray(x.reshape(crops, -1, *x.shape[1:]).swapaxes(0, 1))

    return {
        "global_crops": image_major(common["batch/collated_global_crops"].transpose(0, 2, 3, 1), 2),
        "local_crops": image_major(common["batch/collated_local_crops"].transpose(0, 2, 3, 1), 2),
        "masks": image_major(common["batch/collated_masks"], 2),
    }


def hyper(masking, temperature=0.05, **kwargs):
    """Return the numbers of a step that changes nothing but what is given."""
    values = {"lr": 0.0, "last_layer_lr": 0.0, "weight_decay": 0.0, "teacher_momentum": 1.0}
    return Hyper(**values | kwargs, teacher_temperature=temperature, patch_masking=masking)
