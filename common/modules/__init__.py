"""What BERT's descendants are built of: layers, heads, losses, masks; ResNets and boxes."""

from common.modules.embeddings import TextEmbeddings
from common.modules.heads import HeadTransform, Pooler, WordPrediction
from common.modules.layers import (
    INITIAL_STD,
    LAYER_NORM_EPS,
    Attention,
    BertLayer,
    DenseResidual,
    Intermediate,
    SelfAttention,
    find_activation,
    init_bert_weights,
)
from common.modules.losses import IGNORED, labelled_cross_entropy, precise
from common.modules.masks import additive_mask

__all__ = [
    "IGNORED",
    "INITIAL_STD",
    "LAYER_NORM_EPS",
    "Attention",
    "BertLayer",
    "DenseResidual",
    "HeadTransform",
    "Intermediate",
    "Pooler",
    "SelfAttention",
    "TextEmbeddings",
    "WordPrediction",
    "additive_mask",
    "find_activation",
    "init_bert_weights",
    "labelled_cross_entropy",
    "precise",
]
