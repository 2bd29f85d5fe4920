"""The demo: a small elastic ViT on 12 000 images of Fashion-MNIST, with the whole POA recipe.

python train.py --config configs/demo_vit.py --workdir runs/demo
"""

from poa_jax.config import default


def get_config():
    """Return the configuration of the demo."""
    c = default()
    c.model.image_size = 28
    c.model.patch_size = 7
    c.model.width = 128
    c.model.depth = 6
    c.model.head_dim = 32
    c.model.drop_path = 0.1
    c.elastic.min_width = 64
    c.elastic.width_step = 32
    c.elastic.min_depth = 3
    c.heads.prototypes = (512, 1024)
    c.heads.hidden = 256
    c.heads.bottleneck = 64
    c.data.local_size = 14
    c.data.local_crops = 4
    c.data.workers = 1
    c.train.batch_size = 64
    c.train.steps = 3000
    c.schedule.epoch_steps = 187
    c.schedule.warmup_epochs = 1.0
    c.schedule.patch_masking_start_epoch = 2.0
    c.schedule.teacher_temperature_warmup_epochs = 4.0
    c.schedule.freeze_last_layer_epochs = 0.5
    c.schedule.cut = 1.0
    c.train.checkpoint_every = 500
    c.eval.resize = 28
    return c
