"""Pre-train once, deploy at every size: elastic self-supervised encoders in JAX.

Shape letters used as array suffixes everywhere (`x_BND`, `logits_BK`):

    B  images, or crops, in a batch          N  tokens (CLS first) or patches
    D  embedding width                       H  attention heads, or image height before W
    W  image width                           C  channels of an image or a feature map
    F  hidden width of a feed-forward layer  K  prototypes of a head; classes or neighbours in k-NN
    M  masked patches (a fixed upper bound)  V  crops (views) of an image
    L  blocks stacked on a leading axis      S  sub-networks

A suffix names the axes in order. `x_XD` stands for any leading axes before D.
"""

from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.loading import load, save
from poa_jax.models.vit import Features
from poa_jax.supernet import Backbone, Supernet

__all__ = ["Backbone", "Features", "SearchSpace", "Subnet", "Supernet", "load", "save"]
