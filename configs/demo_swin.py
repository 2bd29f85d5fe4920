"""The demo of the Swin family: 9 sub-networks pre-trained on 12 000 images in minutes on two cores.

    python train.py --config configs/demo_swin.py --workdir runs/demo

`make demo FAMILY=swin` runs it, cuts three sizes out of the result and measures all sub-networks.

Hardware: 2 CPU cores. Time: about 8 minutes; `make demo` asks XLA for one thread a matrix product,
which is fastest for so small a network:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python train.py --config … --workdir …

To expect: every sub-network above its untrained self in k-NN accuracy; the command prints both.

Every part of the POA recipe is on. What differs from the published values is what differs in
`configs/demo_vit.py`, for the same reasons; and images of 28 pixels are enlarged to 32, which four
stages divide.
"""

from poa_jax.config import default


def get_config():
    """Return the configuration of the demo."""
    c = default("swin")
    c.data.source = "embedded"

    c.model.image_size = 32  # maps of 8, 4, 2 and 1 tokens a side
    c.model.patch_size = 4
    c.model.width = 32
    c.model.depths = (1, 1, 4, 1)
    c.model.head_dim = 8
    c.model.window = 2
    c.model.drop_path = 0.0

    c.elastic.min_width = 16  # 3 widths × 3 depths = 9 networks
    c.elastic.width_step = 8
    c.elastic.min_depths = (1, 1, 2, 1)

    c.heads.prototypes = (128, 256)
    c.heads.hidden = 256
    c.heads.bottleneck = 64

    c.data.local_size = 16
    c.data.local_crops = 4
    c.data.global_scale = (0.7, 1.0)
    c.data.local_scale = (0.3, 0.7)
    c.data.blur = (0.1, 0.0, 0.1)
    c.data.solarize = 0.0
    c.data.workers = 1
    c.masks.ratio = (0.25, 0.5)  # one or two of the four places of the mask grid
    c.masks.group = 8

    c.train.batch_size = 64
    c.train.steps = 800
    c.train.checkpoint_every = 400
    c.schedule.epoch_steps = 187  # 12 000 images
    c.schedule.warmup_epochs = 1.0
    c.schedule.patch_masking_start_epoch = 1.0
    c.schedule.freeze_last_layer_epochs = 0.2
    c.schedule.teacher_temperature = (0.03, 0.03)
    c.schedule.teacher_temperature_warmup_epochs = 0.0
    c.schedule.teacher_momentum = (0.95, 0.999)
    c.schedule.weight_decay = (0.04, 0.1)
    c.schedule.cut = 1.0
    c.optimizer.base_lr = 0.002  # × sqrt(64 / 1024) = 0.0005
    c.optimizer.min_lr = 2e-5
    c.optimizer.layer_decay = 1.0
    c.optimizer.patch_embed_lr = 1.0

    c.eval.resize = 32
    return c
