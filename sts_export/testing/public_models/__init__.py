"""The public checkpoints without their weights: configs as on the hub, every tensor's name and shape, files full of holes.

Nothing is downloaded: configs.py says where the values come from and which could not be confirmed.
"""

from sts_export.testing.public_models.configs import PUBLIC_MODELS, PublicModel
from sts_export.testing.public_models.files import write_sparse_checkpoint
from sts_export.testing.public_models.shapes import Shape, tensor_shapes

__all__ = ["PUBLIC_MODELS", "PublicModel", "Shape", "tensor_shapes", "write_sparse_checkpoint"]
