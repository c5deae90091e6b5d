"""Vision tower of Qwen2.5-VL with its merger, for one still image of any size.

    pixel_values -> patch embedding -> blocks 0 .. n-1 (window or full attention) -> merger -> visual_features

Checkpoint names (under ``visual``): ``patch_embed.proj.weight``, ``blocks.i.{norm1, attn.{qkv, proj}, norm2,
mlp.{gate,up,down}_proj}``, ``merger.{ln_q, mlp.0, mlp.2}``.
Source: transformers ``models/qwen2_5_vl/modeling_qwen2_5_vl.py`` (Qwen2_5_VisionTransformerPretrainedModel).

transformers sorts the patches by window once and sorts the features back.  Here they stay in the processor's order, in
which a merged token's patches are neighbours and merged tokens stand in raster order: so do the features, and the layers
with full attention need no index at all.  The window layers gather their windows and put the rows back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype
from sts_export.graphs.layers import DTYPES, Linear, Op, RMSNorm, activate
from sts_export.graphs.model import build_model
from sts_export.graphs.rotary import inverse_frequencies, rotary_tables
from sts_export.graphs.towers.attention_rows import observed_outputs, received_attention
from sts_export.graphs.towers.observed import OBSERVED, Look, Sight, query_steps
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract

ROPE_THETA = 10000.0  # families/qwen2_5_vl.py refuses checkpoints that say otherwise


@dataclass(frozen=True)
class Layout:
    """How a layer arranges the patches for attention: ``groups`` of ``rows`` patches, which attend to each other.

    index: [groups, rows] int64; the patches of each group, or None: one group of all patches, as they stand
    slot: [patches] int64; where each patch stands in the flattened groups, or None as above
    mask: [groups, 1, rows, rows] bool, or None: every row is a patch
    cos, sin: [groups, rows, head_dim / 2] float32; of the rows' coordinates
    rows: patches of a group, or -1 where that is all there are
    """

    index: ir.Value | None
    slot: ir.Value | None
    mask: ir.Value | None
    cos: ir.Value
    sin: ir.Value
    rows: int


def full_layout(op: Op, config: QwenVisionConfig, grid_position_ids: ir.Value) -> Layout:
    """One group of all patches: [1, patches]."""
    head_dim = config.hidden_size // config.num_heads
    if head_dim % 4:
        raise ValueError(f"heads of {head_dim} channels: not a multiple of 4, which rotary positions of two axes need")
    # The row rotates one half of a head and the column the other.
    inverse = inverse_frequencies(head_dim // 2, ROPE_THETA)
    # Gathered [patches, 2, head_dim / 4]: flattened, the row's frequencies come first, then the column's.
    cos, sin = (
        op.Reshape(
            op.Gather(op.initializer(ir.tensor(table), name=f"rotary_{name}"), grid_position_ids),
            op.Constant(value_ints=[1, -1, head_dim // 2]),
        )
        for name, table in zip(("cos", "sin"), rotary_tables(inverse, config.max_grid_side), strict=True)
    )
    return Layout(None, None, None, cos, sin, -1)


def window_layout(op: Op, config: QwenVisionConfig, full: Layout, index: ir.Value, mask: ir.Value, slot: ir.Value) -> Layout:
    """One group a window, padded to the full window: [windows, window_patches ** 2]."""
    rows = config.window_patches**2
    first = op.Constant(value_ints=[0])
    cos, sin = (op.Gather(op.Squeeze(table, first), index) for table in (full.cos, full.sin))
    # Padding is no key.  It does ask, since a row without keys would be NaN; nobody reads what it gets.
    keys = op.Expand(op.Unsqueeze(mask, op.Constant(value_ints=[1, 2])), op.Constant(value_ints=[1, 1, rows, 1]))
    return Layout(index, slot, keys, cos, sin, rows)


class PatchProjection(nn.Module):
    """A convolution over patches that are already cut out: one Gemm.

    weight: [width, channels, temporal_patch, patch, patch]
    """

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.shape = [config.hidden_size, config.patch_values]
        side = config.patch_size
        kernel = [config.hidden_size, config.num_channels, config.temporal_patch_size, side, side]
        self.weight = nn.Parameter(kernel, DTYPES[dtype])

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        return op.Gemm(pixels, op.Reshape(self.weight, op.Constant(value_ints=self.shape)), transB=1)


class PatchEmbed(nn.Module):
    """pixel_values [patches, patch_values] -> [patches, width]."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.proj = PatchProjection(config, dtype)

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        return self.proj(op, pixels)


class Attention(nn.Module):
    """Self-attention among the patches of each group; [patches, width] -> [patches, width]."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.width, self.heads, self.dtype = config.hidden_size, config.num_heads, dtype
        self.head_dim, self.merged = config.head_dim, config.merge_size**2
        self.qkv = Linear(self.width, 3 * self.width, bias=True, dtype=dtype)
        self.proj = Linear(self.width, self.width, bias=True, dtype=dtype)

    def _rotated(self, op: Op, x: ir.Value, layout: Layout) -> ir.Value:
        """Rotary positions on [groups, heads, rows, head_dim]; in float32, as in transformers."""
        rotated = op.RotaryEmbedding(op.Cast(x, to=DTYPES["float32"]), layout.cos, layout.sin)
        return op.Cast(rotated, to=DTYPES[self.dtype])

    def forward(self, op: Op, x: ir.Value, layout: Layout, look: Look) -> tuple[ir.Value, dict[Sight, ir.Value]]:
        qkv = self.qkv(op, x)
        if layout.index is not None:
            qkv = op.Gather(qkv, layout.index)
        # The checkpoint's rows of qkv: all heads of the query, then of the key, then of the value.
        groups = 1 if layout.rows == -1 else -1
        heads = op.Reshape(qkv, op.Constant(value_ints=[groups, layout.rows, 3 * self.heads, self.head_dim]))
        query, key, value = op.Split(op.Transpose(heads, perm=[0, 2, 1, 3]), axis=1, num_outputs=3, _outputs=3)
        projected = key
        query, key = self._rotated(op, query, layout), self._rotated(op, key, layout)
        mask = () if layout.mask is None else (layout.mask,)
        scale = 1 / math.sqrt(self.head_dim)
        mixed = op.Attention(query, key, value, *mask, scale=scale)
        mixed = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), op.Constant(value_ints=[-1, self.width]))
        if layout.slot is not None:
            mixed = op.Gather(mixed, layout.slot)
        out = self.proj(op, mixed)
        seen: dict[Sight, ir.Value] = {}
        if "received_attention" in look.sights:
            rows = received_attention(op, query, key, heads=self.heads, scale=scale, skip=0, steps=look.steps)
            seen["received_attention"] = self._of_tokens(op, rows)
        if "mean_keys" in look.sights:
            wide = op.Cast(projected, to=DTYPES["float32"])
            means = op.ReduceMean(wide, op.Constant(value_ints=[1]), keepdims=0)
            seen["mean_keys"] = self._of_tokens(op, means, self.head_dim)
        return out, seen

    def _of_tokens(self, op: Op, x: ir.Value, *width: int) -> ir.Value:
        """[1, patches, *width] -> [1, tokens, *width], mean over the patches of each: they are neighbours."""
        split = op.Reshape(x, op.Constant(value_ints=[1, -1, self.merged, *width]))
        return op.ReduceMean(split, op.Constant(value_ints=[2]), keepdims=0)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), with biases."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.activation = config.activation
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(width, inner, bias=True, dtype=dtype)
        self.up_proj = Linear(width, inner, bias=True, dtype=dtype)
        self.down_proj = Linear(inner, width, bias=True, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.down_proj(op, op.Mul(activate(op, self.gate_proj(op, x), self.activation), self.up_proj(op, x)))


class Block(nn.Module):
    """Pre-norm transformer layer on [patches, width]."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attn = Attention(config, dtype)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def forward(self, op: Op, x: ir.Value, layout: Layout, look: Look) -> tuple[ir.Value, dict[Sight, ir.Value]]:
        attended, seen = self.attn(op, self.norm1(op, x), layout, look)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.norm2(op, x))), seen


class Gelu(nn.Module):
    """The merger's activation, whatever that of the blocks; in the checkpoint it stands between mlp.0 and mlp.2."""

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return activate(op, x, "gelu")


class Merger(nn.Module):
    """merge ** 2 neighbouring rows become one token: [patches, width] -> [tokens, out_width]."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype) -> None:
        super().__init__()
        self.merged = config.hidden_size * config.merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = nn.Sequential(
            Linear(self.merged, self.merged, bias=True, dtype=dtype),
            Gelu(),
            Linear(self.merged, config.out_hidden_size, bias=True, dtype=dtype),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.mlp(op, op.Reshape(self.ln_q(op, x), op.Constant(value_ints=[-1, self.merged])))


class QwenVision(nn.Module):
    """pixel_values [patches, patch_values] and a layout for every block -> visual_features [1, tokens, out_width]."""

    def __init__(self, config: QwenVisionConfig, dtype: Dtype, *, name: str) -> None:
        super().__init__(name)
        self.patch_embed = PatchEmbed(config, dtype)
        self.blocks = nn.ModuleList([Block(config, dtype) for _ in range(config.num_layers)])
        self.merger = Merger(config, dtype)

    def forward(
        self, op: Op, pixels: ir.Value, layouts: list[Layout], looks: Mapping[int, Look]
    ) -> tuple[ir.Value, dict[int, dict[Sight, ir.Value]]]:
        x = self.patch_embed(op, pixels)
        seen = {}
        for number, (block, layout) in enumerate(zip(self.blocks, layouts, strict=True), start=1):
            x, seen[number] = block(op, x, layout, looks.get(number, Look()))
        return op.Unsqueeze(self.merger(op, x), op.Constant(value_ints=[0])), seen


def layouts(op: Op, config: QwenVisionConfig, grid_position_ids: ir.Value, *window_inputs: ir.Value) -> list[Layout]:
    """The layout of every block; the blocks share them.  A tower without window layers leaves ``window_inputs`` unused."""
    is_full = [layer in config.full_attention_layers for layer in range(config.num_layers)]
    full = full_layout(op, config, grid_position_ids)
    windows = full if all(is_full) else window_layout(op, config, full, *window_inputs)
    return [full if attends_to_all else windows for attends_to_all in is_full]


def qwen_encoder(
    config: QwenVisionConfig, dtype: Dtype, *, prefix: str, needs: Set[str] = frozenset(), max_patches: int | None = None
) -> ir.Model:
    """The vision_encoder graph; parameters are named ``prefix`` + the tower's own names.

    Args:
        needs: of stage 1; see the contract.
        max_patches: of the largest picture; has to be known for received attention, which is wrong of larger ones.

    Raises:
        ValueError: ``needs`` asks for attention to the whole image, and no layer has it or ``max_patches`` is missing.
    """
    tower = QwenVision(config, dtype, name=prefix)
    depths = config.depths if needs & OBSERVED.keys() else None
    looks: dict[int, Look] = {}
    if depths is not None:
        if max_patches is None:
            raise ValueError("rows of attention need the patches of the largest picture")
        steps = query_steps(1, config.num_heads, max_patches)
        looks = {layer: Look(sights, steps) for layer, sights in depths.sights(needs).items()}

    def forward(op: Op, pixels: ir.Value, *rest: ir.Value) -> list[ir.Value]:
        features, seen = tower(op, pixels, layouts(op, config, *rest), looks)
        return [features, *(observed_outputs(op, needs, depths, seen) if depths else ())]

    return build_model(qwen_encoder_contract(config, dtype, needs), forward)
