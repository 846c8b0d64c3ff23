"""HAT on a CPU: the sums of `model.hat`, one frame at a time, a few rows at a time, in place.

What a layer needs of a few rows stays in the processor's cache, and of the whole frame no more is kept than the features
and what the next layer adds to them: twice as fast as whole-frame layers on 320x180 px, in a fraction of their memory.
Not for training, which has to keep what it computes.

Images are (H, W, C), H and W multiples of the window. Products are computed in float32 or bfloat16; the features that
all layers add to, every normalisation and the layers at both ends, which carry the picture itself, are float32.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hat import (
    HAT,
    AttentionBlocks,
    HybridAttentionBlock,
    MLP,
    OverlappingCrossAttentionBlock,
    ResidualHybridAttentionGroup,
)
from model.padding import pad_to_multiple

BAND_PIXELS = 4096
"""About as many pixels pass through a layer at a time."""

# Up to here torch's fused attention on a CPU is slower than plain products: the logits of a band fit the cache anyway.
SMALL_WINDOW_PIXELS = 64


class BandShape(NamedTuple):
    """Some rows of windows, and the larger windows around them that keys and values are taken from.

    One bias serves all windows; or, where `last_column_differs`, all but the last column of windows, which has its own.
    """

    rows: int
    columns: int
    window: int
    key_window: int
    heads: int
    head_channels: int
    last_column_differs: bool

    @property
    def margin_px(self) -> int:
        """By how much the keys' windows reach beyond the queries', on each side."""
        return (self.key_window - self.window) // 2


BandAttention = Callable[[Tensor, Tensor, Tensor, BandShape], Tensor]
"""softmax(q k^T / sqrt(d) + bias) v in every window, laid out as the image: (h, W, C).

Given contiguous q (h, W, C) and keys and values side by side, (h + 2 margin, W + 2 margin, 2C), all float32 or all
bfloat16, as the result is; the biases (1 or 2, n, queries, keys), float32; and the shape.
"""


def attend_by_torch(q: Tensor, kv: Tensor, biases: Tensor, shape: BandShape) -> Tensor:
    """The `BandAttention` that needs nothing but torch."""
    rows, columns, window, key_window, heads, head_channels, last_column_differs = shape
    # Columns first, so that the last one can be told from the others.
    queries = q.view(rows, window, columns, window, heads, head_channels).permute(2, 0, 4, 1, 3, 5)
    queries = queries.reshape(columns, rows, heads, window**2, head_channels)
    kv = kv.unfold(0, key_window, window).unfold(1, key_window, window)
    kv = kv.view(rows, columns, 2, heads, head_channels, key_window, key_window).permute(2, 1, 0, 3, 5, 6, 4)
    keys, values = kv.reshape(2, columns, rows, heads, key_window**2, head_channels)
    sizes = [columns - 1, 1] if last_column_differs else [columns]
    attended = [
        _attend(*(part.flatten(0, 1) for part in parts), bias.to(q.dtype))
        for *parts, bias in zip(queries.split(sizes), keys.split(sizes), values.split(sizes), biases, strict=True)
    ]
    windows = torch.cat(attended) if len(attended) > 1 else attended[0]
    image = windows.view(columns, rows, heads, window, window, head_channels).permute(1, 3, 0, 4, 2, 5)
    return image.reshape(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Of (windows, n, pixels, d) with the (n, queries, keys) bias of all windows."""
    if q.shape[-2] > SMALL_WINDOW_PIXELS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    attended: Tensor = logits.add_(bias).softmax(dim=-1) @ v
    return attended


class HATInBands:
    """(B, 3, H, W) to (B, 3, sH, sW) float32, as `hat` itself without gradients; keeps its weights as they are now."""

    def __init__(self, hat: HAT, dtype: torch.dtype, attend: BandAttention) -> None:
        """`dtype`: what products are computed in, float32 or bfloat16."""
        self._hat = hat
        self._dtype = dtype
        self._attend = attend
        self._kept: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> Tensor:
        return torch.cat([self._frame(frame) for frame in lr.split(1)])

    def _frame(self, lr: Tensor) -> Tensor:
        hat, scale = self._hat, self._hat.config.upscale
        padded = (pad_to_multiple(lr, hat.config.window_size) - hat.mean) * hat.config.img_range
        padded = padded.contiguous(memory_format=torch.channels_last)
        x = hat.patch_embed["norm"](_image(hat.conv_first(padded)))
        for group in hat.layers:
            assert isinstance(group, ResidualHybridAttentionGroup)
            x = x.add_(self._group(group, x.clone()))
        for rows in bands(x, 1):
            x[rows] = hat.norm(x[rows])
        # Computed again: to keep it all the while would be a third of the memory.
        x = _image(hat.conv_first(padded)).add_(self._conv(hat.conv_after_body, x))
        features = F.leaky_relu_(hat.conv_before_upsample[0](_channels_first(x)))
        del x
        enlarged = hat.conv_last(hat.upsample(features)).div_(hat.config.img_range).add_(hat.mean)
        return enlarged[..., : lr.shape[-2] * scale, : lr.shape[-1] * scale]

    def _group(self, group: ResidualHybridAttentionGroup, x: Tensor) -> Tensor:
        """RHAG, without the sum with its input."""
        blocks = group.residual_group
        assert isinstance(blocks, AttentionBlocks)
        for block in blocks.blocks:
            assert isinstance(block, HybridAttentionBlock)
            self._hybrid_attention_(block, x)
        self._overlapping_attention_(blocks.overlap_attn, x)
        return self._conv(group.conv, x)

    def _hybrid_attention_(self, block: HybridAttentionBlock, x: Tensor) -> None:
        """HAB (paper, equation 2), added to x."""
        attention, (height, width, channels) = block.attn, x.shape
        window, shift, heads = attention.window, attention.shift, attention.heads
        normed = torch.empty_like(x, dtype=self._dtype)
        for rows in bands(x, 1):
            normed[rows] = block.norm1(x[rows])
        detail, gates = self._channel_attention(block, normed)
        biases = attention.bias(self._hat.relative_position_index_SA, attention.masks)
        # With a shift, the last row of windows holds pixels from opposite edges and has its own biases.
        inner = height - window if shift else height
        parts = [(rows, biases[:2]) for rows in bands(x[:inner], window)]
        if shift:
            parts.append((slice(inner, height), biases[2:]))
        for rows, of_rows in parts:
            q, kv = self._linear(attention.qkv, rolled_rows(normed, rows, shift)).split([channels, 2 * channels], -1)
            shape = BandShape(
                q.shape[0] // window, width // window, window, window, heads, channels // heads, bool(shift)
            )
            attended = self._attend_(q, kv, of_rows, shape)
            add_rolled_rows_(x, self._linear(attention.proj, attended), rows, shift)
        for rows in bands(x, 1):
            self._mlp_(block.norm2, block.mlp, x[rows].add_(detail[rows] * gates))

    def _channel_attention(self, block: HybridAttentionBlock, normed: Tensor) -> tuple[Tensor, Tensor]:
        """CAB: (H, W, C), and the (C,) that each of its channels is to be multiplied by."""
        widen, _, narrow, attention = block.conv_block.cab
        detail = self._conv(narrow, F.gelu(self._conv(widen, normed)))
        gates = attention.gates(_channels_first(detail)).flatten()
        return detail, gates * block.conv_scale

    def _overlapping_attention_(self, block: OverlappingCrossAttentionBlock, x: Tensor) -> None:
        """OCAB (paper, equation 4), added to x."""
        height, width, channels = x.shape
        window, key_window, heads = block.window, block.key_window, block.heads
        margin = (key_window - window) // 2
        bias = block.bias(self._hat.relative_position_index_OCA).unsqueeze(0)
        before = torch.empty(0, width, channels)
        for rows in bands(x, window):
            # The rows above have been added to already: what they were is kept.
            below = x[rows.start : rows.stop + margin]
            around = torch.cat([before, below])
            qkv = self._linear(block.qkv, block.norm1(around).to(self._dtype))
            q = qkv[before.shape[0] :][: rows.stop - rows.start, :, :channels]
            # Beyond the image keys and values are zero, and are attended to: the reference has no mask here.
            above_px, below_px = margin - before.shape[0], margin - (below.shape[0] - q.shape[0])
            kv = F.pad(qkv[..., channels:], (0, 0, margin, margin, above_px, below_px))
            shape = BandShape(
                q.shape[0] // window, width // window, window, key_window, heads, channels // heads, False
            )
            attended = self._attend_(q, kv, bias, shape)
            before = x[rows.stop - margin : rows.stop].clone()
            x[rows] += self._linear(block.proj, attended)
        for rows in bands(x, 1):
            self._mlp_(block.norm2, block.mlp, x[rows])

    def _attend_(self, q: Tensor, kv: Tensor, biases: Tensor, shape: BandShape) -> Tensor:
        return self._attend(q.contiguous(), kv.contiguous(), biases, shape)

    def _mlp_(self, norm: nn.LayerNorm, mlp: MLP, x: Tensor) -> None:
        hidden = F.gelu(self._linear(mlp.fc1, norm(x).to(self._dtype)))
        x += self._linear(mlp.fc2, hidden)

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        weight, bias = self._weights(layer)
        if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return F.linear(x, weight, bias)
        # In float32 torch gives `F.linear` to MKL and convolutions to oneDNN, which is twice as fast where measured.
        # By its function for oneDNN alone: on one thread `F.conv2d` would choose another again.
        channels_first = _channels_first(x)
        return _image(torch.mkldnn_convolution(channels_first, weight[..., None, None], bias, (0, 0), (1, 1), (1, 1), 1))

    def _conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        return _image(F.conv2d(_channels_first(x.to(self._dtype)), *self._weights(layer), padding=1))

    def _weights(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """In the type of products; converted once."""
        if layer not in self._kept:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            bias = layer.bias
            self._kept[layer] = layer.weight.to(self._dtype), None if bias is None else bias.to(self._dtype)
        return self._kept[layer]


def bands(x: Tensor, window: int) -> Iterator[slice]:
    """The rows of (H, W, C), some rows of windows at a time."""
    step = window * max(1, BAND_PIXELS // (window * x.shape[1]))
    return (slice(top, min(top + step, x.shape[0])) for top in range(0, x.shape[0], step))


def rolled_rows(x: Tensor, rows: slice, shift: int) -> Tensor:
    """Those rows of (H, W, C) rolled up and to the left by `shift`."""
    if not shift:
        return x[rows]
    lower, wrapped = _rolled(rows, shift, x.shape[0])
    return torch.cat([part.roll(-shift, 1) for part in (x[lower], x[wrapped])])


def add_rolled_rows_(x: Tensor, added: Tensor, rows: slice, shift: int) -> None:
    """Add, to where `rolled_rows` took them from."""
    if not shift:
        x[rows] += added
        return
    lower, wrapped = _rolled(rows, shift, x.shape[0])
    for place, part in zip((lower, wrapped), added.split([x[lower].shape[0], x[wrapped].shape[0]]), strict=True):
        x[place, shift:] += part[:, :-shift]
        x[place, :shift] += part[:, -shift:]


def _rolled(rows: slice, shift: int, height: int) -> tuple[slice, slice]:
    """Where rows come from in an image rolled up by `shift`: a run of rows, and one from the top edge on."""
    start, stop = rows.start + shift, rows.stop + shift
    return slice(start, min(stop, height)), slice(0, max(stop - height, 0))


def _channels_first(x: Tensor) -> Tensor:
    # In this order the strides are those that torch knows as channels-last; it would copy otherwise.
    return x.unsqueeze(0).permute(0, 3, 1, 2)


def _image(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).squeeze(0)
