"""CLIP vision tower up to the feature layer.

    pixel_values -> patch embedding, CLS, positions -> pre-norm -> encoder layers 0 .. feature_layers-1 -> visual_features

Checkpoint names (under ``vision_tower.vision_model``): ``embeddings.{class_embedding, patch_embedding.weight,
position_embedding.weight}``, ``pre_layrnorm`` (spelled so), ``encoder.layers.i.{layer_norm1, self_attn.{q,k,v,out}_proj,
layer_norm2, mlp.{fc1, fc2}}``.  Later layers, ``post_layernorm`` and pooling are not needed.
Source: transformers ``models/clip/modeling_clip.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype
from sts_export.graphs.layers import DTYPES, LayerNorm, Linear, Op, activate, concat_dims, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.needs import CLS_FEATURES
from sts_export.graphs.towers.attention_rows import attention_of_first, observed_outputs, received_attention
from sts_export.graphs.towers.clip_contract import ClipVisionConfig, clip_encoder_contract
from sts_export.graphs.towers.observed import Look, Sight, Steps, query_steps


class PatchEmbedding(nn.Module):
    """Non-overlapping convolution.  weight: [width, channels, patch, patch]."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.weight = nn.Parameter([config.hidden_size, config.num_channels, self.patch, self.patch], DTYPES[dtype])

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        return op.Conv(pixels, self.weight, kernel_shape=[self.patch] * 2, strides=[self.patch] * 2)


class PositionEmbedding(nn.Module):
    """Learned positions, CLS first.  weight: [1 + patches, width]."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter([1 + config.num_patches, config.hidden_size], DTYPES[dtype])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Add(x, self.weight)


class Embeddings(nn.Module):
    """pixel_values [crops, channels, size, size] -> [crops, 1 + patches, width]."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.class_embedding = nn.Parameter([config.hidden_size], DTYPES[dtype])
        self.patch_embedding = PatchEmbedding(config, dtype)
        self.position_embedding = PositionEmbedding(config, dtype)

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        patches = self.patch_embedding(op, pixels)
        patches = op.Transpose(op.Reshape(patches, op.Constant(value_ints=[0, self.width, -1])), perm=[0, 2, 1])
        cls = op.Expand(self.class_embedding, concat_dims(op, dims(op, pixels, 0, 1), 1, self.width))
        return self.position_embedding(op, op.Concat(cls, patches, axis=1))


class SelfAttention(nn.Module):
    """Full self-attention over the tokens of a crop, and what else is asked of it for the patches."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.heads, self.width = config.num_heads, config.hidden_size
        self.tokens = config.num_patches + 1
        self.head_dim = config.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Linear(config.hidden_size, config.hidden_size, bias=True, dtype=dtype))

    def _split(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Reshape(x, op.Constant(value_ints=[-1, self.tokens, self.heads, self.head_dim]))

    def _heads(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Transpose(self._split(op, x), perm=[0, 2, 1, 3])

    def forward(self, op: Op, x: ir.Value, look: Look) -> tuple[ir.Value, dict[Sight, ir.Value]]:
        query = self._heads(op, self.q_proj(op, x))
        keys = self.k_proj(op, x)
        key = self._heads(op, keys)
        value = self._heads(op, self.v_proj(op, x))
        scale = 1 / math.sqrt(self.head_dim)
        mixed = op.Attention(query, key, value, scale=scale)
        mixed = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), op.Constant(value_ints=[-1, self.width]))
        out = self.out_proj(op, mixed)
        seen: dict[Sight, ir.Value] = {}
        if "cls_attention" in look.sights:
            seen["cls_attention"] = self._of_patches(op, attention_of_first(op, query, key, scale))
        if "received_attention" in look.sights:
            rows = received_attention(op, query, key, heads=self.heads, scale=scale, skip=1, steps=look.steps)
            seen["received_attention"] = self._of_patches(op, rows)
        if "mean_keys" in look.sights:
            # As they were projected: heads need not be transposed for it.
            wide = op.Cast(self._split(op, keys), to=DTYPES["float32"])
            means = op.ReduceMean(wide, op.Constant(value_ints=[2]), keepdims=0)
            seen["mean_keys"] = self._of_patches(op, means)
        return out, seen

    def _of_patches(self, op: Op, x: ir.Value) -> ir.Value:
        """[crops, tokens, ...] without CLS."""
        return op.Slice(x, op.Constant(value_ints=[1]), op.Constant(value_ints=[self.tokens]), op.Constant(value_ints=[1]))


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True, dtype=dtype)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.fc2(op, activate(op, self.fc1(op, x), self.activation))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer on [crops * tokens, width]."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)
        self.self_attn = SelfAttention(config, dtype)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def forward(self, op: Op, x: ir.Value, look: Look) -> tuple[ir.Value, dict[Sight, ir.Value]]:
        attended, seen = self.self_attn(op, self.layer_norm1(op, x), look)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x))), seen


class Encoder(nn.Module):
    """The layers up to the feature layer."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(config, dtype) for _ in range(config.feature_layers)])

    def forward(self, op: Op, x: ir.Value, looks: Mapping[int, Look]) -> tuple[ir.Value, dict[int, dict[Sight, ir.Value]]]:
        seen = {}
        for number, layer in enumerate(self.layers, start=1):
            x, seen[number] = layer(op, x, looks.get(number, Look()))
        return x, seen


class ClipVision(nn.Module):
    """pixel_values -> visual_features [crops, N, width], and what else is needed."""

    def __init__(self, config: ClipVisionConfig, dtype: Dtype, *, name: str) -> None:
        super().__init__(name)
        self.config = config
        self.embeddings = Embeddings(config, dtype)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)
        self.encoder = Encoder(config, dtype)

    def forward(self, op: Op, pixels: ir.Value, needs: Set[str], steps: Steps) -> list[ir.Value]:
        config = self.config
        x = self.pre_layrnorm(op, self.embeddings(op, pixels))
        looks = {layer: Look(sights, steps) for layer, sights in config.depths.sights(needs).items()}
        x, seen = self.encoder(op, op.Reshape(x, op.Constant(value_ints=[-1, config.hidden_size])), looks)
        x = op.Reshape(x, op.Constant(value_ints=[-1, config.num_patches + 1, config.hidden_size]))
        patches = op.Slice(
            x, op.Constant(value_ints=[1]), op.Constant(value_ints=[config.num_patches + 1]), op.Constant(value_ints=[1])
        )
        outputs = [patches, *observed_outputs(op, needs, config.depths, seen)]
        if CLS_FEATURES in needs:
            outputs.append(op.Gather(x, op.Constant(value_int=0), axis=1))
        return outputs


def clip_encoder(
    config: ClipVisionConfig, dtype: Dtype, *, prefix: str, needs: Set[str] = frozenset(), max_crops: int = 1
) -> ir.Model:
    """The vision_encoder graph; parameters are named ``prefix`` + CLIP's own names.

    Args:
        needs: of stage 1; see the contract.
        max_crops: of the largest picture.  With more crops the graph computes the same, but may hold more at once.
    """
    tower = ClipVision(config, dtype, name=prefix)
    steps = query_steps(max_crops, config.num_heads, config.num_patches + 1)
    contract = clip_encoder_contract(config, dtype, needs)
    return build_model(contract, lambda op, pixels: tower(op, pixels, needs, steps))
