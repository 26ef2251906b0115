"""Between files of vectors, vocabularies and tables."""

from maskedgrad.vectors.extension import extend
from maskedgrad.vectors.loading import VectorReport, load_vectors
from maskedgrad.vectors.merging import merge_two_tables
from maskedgrad.vectors.moving import change_vocabulary
from maskedgrad.vectors.pretrained import pretrained_embedding
from maskedgrad.vectors.projector import write_projector
from maskedgrad.vectors.saving import save_vectors

__all__ = [
    "VectorReport",
    "change_vocabulary",
    "extend",
    "load_vectors",
    "merge_two_tables",
    "pretrained_embedding",
    "save_vectors",
    "write_projector",
]
