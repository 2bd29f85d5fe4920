"""The configuration of a run: every key, its default, its unit.

Config files (`configs/*.py`) start from `default()` and change what differs. The values below are
the published ViT recipe where the paper gives one (arXiv 2408.01031, appendix A).
"""

import ml_collections


def default() -> ml_collections.ConfigDict:
    """Return the full tree of keys with the published ViT values."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.model = ml_collections.ConfigDict()
    c.model.family = "vit"
    c.model.image_size = 224  # pixels of a global crop; also the grid of the position table
    c.model.patch_size = 16
    c.model.width = 1024  # widest sub-network = the intact network
    c.model.depth = 24
    c.model.head_dim = 64  # width of one attention head, the same in every sub-network
    c.model.mlp_ratio = 4.0
    c.model.mlp = "gelu"  # "gelu" or "swiglu"
    c.model.layer_scale = 1e-5  # initial value; 0 turns LayerScale off
    c.model.drop_path = 0.2
    c.model.drop_path_uniform = True  # False: grows linearly from 0 to drop_path over the blocks
    c.model.dtype = "float32"  # compute type; parameters, losses and targets stay float32
    c.model.remat = "none"  # name of a jax.checkpoint policy, "full" or "none"

    c.elastic = ml_collections.ConfigDict()
    c.elastic.min_width = 384
    c.elastic.width_step = 64
    c.elastic.min_depth = 12
    c.elastic.depth_step = 1
    c.elastic.scale = 3  # the smallest network is drawn scale² times as often as the largest
    c.elastic.width_bounds = "each"  # "each": slices exactly; "max": masks; or a tuple of widths
    c.elastic.draw = "per_device"  # "per_device" (the paper) or "shared"

    c.heads = ml_collections.ConfigDict()
    c.heads.prototypes = (8192, 16384, 32768, 65536)
    c.heads.hidden = 2048
    c.heads.bottleneck = 256
    c.heads.layers = 3

    c.loss = ml_collections.ConfigDict()
    c.loss.intact_weight = 0.8  # λ: intact student λ, elastic student 1 − λ
    c.loss.cls = 1.0
    c.loss.patch = 1.0
    c.loss.koleo = 0.1
    c.loss.student_temperature = 0.1
    c.loss.targets = "sinkhorn"  # "sinkhorn" or "centring"
    c.loss.sinkhorn_iterations = 3
    c.loss.centre_momentum = 0.9

    c.schedule = ml_collections.ConfigDict()
    c.schedule.epoch_steps = 800  # steps in one "epoch" of the schedules below
    c.schedule.warmup_epochs = 10.0
    c.schedule.cut = 0.78  # cosines are laid out over steps / cut and cut at the last step
    c.schedule.teacher_temperature = (0.04, 0.07)
    c.schedule.teacher_temperature_warmup_epochs = 30.0
    c.schedule.teacher_momentum = (0.992, 0.9999)
    c.schedule.weight_decay = (0.04, 0.4)
    c.schedule.freeze_last_layer_epochs = 1.0
    c.schedule.patch_masking_start_epoch = 30.0

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.base_lr = 0.004  # × sqrt(batch / 1024)
    c.optimizer.min_lr = 2e-5
    c.optimizer.betas = (0.9, 0.999)
    c.optimizer.clip = 1.5  # largest gradient norm of each of backbone and heads; 0 turns it off
    c.optimizer.layer_decay = 0.9
    c.optimizer.patch_embed_lr = 0.2

    c.data = ml_collections.ConfigDict()
    c.data.source = "embedded"
    c.data.split = "train"
    c.data.local_size = 96  # pixels
    c.data.local_crops = 8
    c.data.global_scale = (0.32, 1.0)  # share of the image's area
    c.data.local_scale = (0.05, 0.32)
    c.data.flip = 0.5
    c.data.jitter = 0.8  # probability of colour jitter
    c.data.jitter_strength = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    c.data.grayscale = 0.2
    c.data.blur = (1.0, 0.1, 0.5)  # global crop 1, global crop 2, local crops
    c.data.blur_inverted = False  # True: blur with 1 − p, as the official code does
    c.data.solarize = 0.2  # global crop 2 only
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.data.workers = 2  # threads that make batches ahead of the training step; 0: in line
    c.data.prefetch = 4  # batches
    c.data.max_bad_fraction = 0.01  # unreadable images allowed, as a share of those read

    c.masks = ml_collections.ConfigDict()
    c.masks.probability = 0.5  # share of global crops that are masked
    c.masks.ratio = (0.1, 0.5)  # share of patches masked in such a crop
    c.masks.group = 8  # images that share one set of equally spaced ratios

    c.train = ml_collections.ConfigDict()
    c.train.steps = 276_800
    c.train.batch_size = 1600  # images, over all devices
    c.train.checkpoint_every = 1000  # steps
    c.train.keep_checkpoints = 2
    c.train.log_every = 10  # steps

    c.parallel = ml_collections.ConfigDict()
    c.parallel.engine = "shard_map"

    c.eval = ml_collections.ConfigDict()
    c.eval.resize = 256  # pixels of the shorter side, then a centre crop of model.image_size
    c.eval.batch_size = 256
    c.eval.neighbours = (10, 20, 100, 200)
    c.eval.temperature = 0.07
    return c
