"""HAT on a CPU: the sums of `model.hat`, one frame at a time, a few rows at a time, in place.

What a layer needs of a few rows stays in the processor's cache, and of the whole frame no more is kept than the
features and what the next layer adds to them: faster than whole-frame layers, in a fraction of their memory.
Not for training, which has to keep what it computes.

Images are (H, W, C), H and W multiples of the window. Products are computed in float32 or bfloat16; the features that
all layers add to, every normalisation and the layers at both ends, which carry the picture itself, are float32.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hat import (
    HAT,
    MLP,
    AttentionBlocks,
    ChannelAttention,
    HybridAttentionBlock,
    OverlappingCrossAttentionBlock,
    ResidualHybridAttentionGroup,
)
from model.padding import pad_to_multiple

BAND_PIXELS = 4096
"""About as many pixels pass through a layer at a time."""

# oneDNN lays the weights of a convolution out anew in every call, so convolutions take more at a time.
CONVOLUTION_BAND_PIXELS = 4 * BAND_PIXELS

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
    attended = []
    for q_part, k_part, v_part, bias in zip(
        *(torch.split(tensor, sizes) for tensor in (queries, keys, values)), biases, strict=True
    ):
        q_part, k_part, v_part = (part.flatten(0, 1) for part in (q_part, k_part, v_part))
        attended.append(_attend(q_part, k_part, v_part, bias.to(q.dtype)))
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


def band_attention(window: int) -> tuple[BandAttention, str]:
    """The fastest one here for windows of so many pixels a side, and its name, for other kernels give other bits.

    OpenVINO where it is installed and windows are large: with 8x8 px torch's products were as fast.
    """
    if window**2 > SMALL_WINDOW_PIXELS and find_spec("openvino") is not None:
        from model.openvino_attention import attend_in_band

        return attend_in_band, f"openvino{version('openvino')}"
    return attend_by_torch, "torch"


def release_attention_memory() -> None:
    """Give back what kernels keep for the sizes that they have seen."""
    openvino_attention = sys.modules.get("model.openvino_attention")
    if openvino_attention is not None:
        openvino_attention.release_memory()


class HATInBands:
    """(B, 3, H, W) to (B, 3, sH, sW) float32, as `hat` itself without gradients; scales of 2 and 3."""

    def __init__(self, hat: HAT, dtype: torch.dtype, attend: BandAttention, attention: str) -> None:
        """`dtype`: what products are computed in, float32 or bfloat16. `attention`: the name of `attend`."""
        if len(hat.upsample) != 2:
            raise ValueError(f"in bands HAT upscales by 2 or 3, not by {hat.config.upscale}")
        self.attention = attention
        self.scale = hat.config.upscale
        self._hat = hat
        self._dtype = dtype
        self._attend = attend
        self._converted: dict[nn.Module, tuple[list[tuple[int, int]], tuple[Tensor, Tensor | None]]] = {}

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> Tensor:
        return torch.cat([self._frame(frame) for frame in torch.split(lr, 1)])

    def _frame(self, lr: Tensor) -> Tensor:
        hat = self._hat
        padded = (pad_to_multiple(lr, hat.config.window_size) - hat.mean) * hat.config.img_range
        padded = padded.contiguous(memory_format=torch.channels_last)
        x = hat.patch_embed["norm"](_image(hat.conv_first(padded)))
        for group in hat.layers:
            assert isinstance(group, ResidualHybridAttentionGroup)
            group_input = x.clone()
            self._attention_blocks_(group, x)
            x = self._conv(group.conv, x, group_input)
            del group_input
        # Shallow features are computed again: to keep them all the while would be a third of the memory.
        x = self._conv(hat.conv_after_body, x, _image(hat.conv_first(padded)), of=hat.norm)
        return self._picture(x)[..., : lr.shape[-2] * self.scale, : lr.shape[-1] * self.scale]

    def _attention_blocks_(self, group: ResidualHybridAttentionGroup, x: Tensor) -> None:
        blocks = group.residual_group
        assert isinstance(blocks, AttentionBlocks)
        for block in blocks.blocks:
            assert isinstance(block, HybridAttentionBlock)
            self._hybrid_attention_(block, x)
        self._overlapping_attention_(blocks.overlap_attn, x)

    def _picture(self, deep: Tensor) -> Tensor:
        """(1, 3, sH, sW) from the deep features: all of it float32, for the picture itself runs along here."""
        hat, (height, width, _) = self._hat, deep.shape
        before_upsample, (widen, shuffle) = hat.conv_before_upsample[0], hat.upsample
        features = deep.new_empty(height, width, hat.config.num_feat)
        for rows in bands(deep, 1):
            features[rows] = F.leaky_relu_(_conv_inside(rows_around(deep, rows), before_upsample))
        picture = deep.new_empty(1, hat.config.in_chans, self.scale * height, self.scale * width)
        for rows in bands(features, 1):
            # A row more on each side, for the convolution that follows.
            wider = slice(max(0, rows.start - 1), min(height, rows.stop + 1))
            enlarged = _image(shuffle(_channels_first(_conv_inside(rows_around(features, wider), widen))))
            of_rows, offset = (slice(self.scale * at.start, self.scale * at.stop) for at in (rows, wider))
            inside = slice(of_rows.start - offset.start, of_rows.stop - offset.start)
            last = _conv_inside(rows_around(enlarged, inside), hat.conv_last)
            picture[:, :, of_rows] = _channels_first(last).div_(hat.config.img_range).add_(hat.mean)
        return picture

    def _hybrid_attention_(self, block: HybridAttentionBlock, x: Tensor) -> None:
        """HAB (paper, equation 2), added to x."""
        attention, (height, width, channels) = block.attn, x.shape
        window, shift, heads = attention.window, attention.shift, attention.heads
        detail, gates = self._channel_attention(block, x)
        biases = attention.bias(self._hat.relative_position_index_SA, attention.masks)
        # With a shift, the last row of windows holds pixels from opposite edges and has its own biases.
        inner = height - window if shift else height
        parts = [(rows, biases[:2]) for rows in bands(x[:inner], window)]
        if shift:
            parts.append((slice(inner, height), biases[2:]))
        for rows, of_rows in parts:
            normed = block.norm1(rolled_rows(x, rows, shift)).to(self._dtype)
            q, kv = self._queries_and_keys(attention.qkv, normed)
            shape = BandShape(
                q.shape[0] // window, width // window, window, window, heads, channels // heads, bool(shift)
            )
            attended = self._attend(q, kv, of_rows, shape)
            add_rolled_rows_(x, self._linear(attention.proj, attended), rows, shift)
        for rows in bands(x, 1):
            self._mlp_(block.norm2, block.mlp, x[rows].add_(detail[rows] * gates))

    def _channel_attention(self, block: HybridAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor]:
        """CAB: (H, W, C), and the (C,) that each of its channels is to be multiplied by."""
        widen, _, narrow, attention = block.conv_block.cab
        hidden = self._conv(widen, x, of=block.norm1)
        detail = self._conv(narrow, hidden, of=F.gelu)
        sums = [detail[rows].sum((0, 1), dtype=torch.float32) for rows in bands(detail, 1)]
        means = torch.stack(sums).sum(0) / (detail.shape[0] * detail.shape[1])
        assert isinstance(attention, ChannelAttention)
        return detail, attention.gates(means) * block.conv_scale

    def _overlapping_attention_(self, block: OverlappingCrossAttentionBlock, x: Tensor) -> None:
        """OCAB (paper, equation 4), added to x."""
        _, width, channels = x.shape
        window, key_window, heads = block.window, block.key_window, block.heads
        margin = (key_window - window) // 2
        bias = block.bias(self._hat.relative_position_index_OCA).unsqueeze(0)
        before = torch.empty(0, width, channels)
        for rows in bands(x, window):
            # The rows above have been added to already: what they were is kept.
            below = x[rows.start : rows.stop + margin]
            around = torch.cat([before, below])
            q, kv = self._queries_and_keys(block.qkv, block.norm1(around).to(self._dtype))
            q = q[before.shape[0] :][: rows.stop - rows.start]
            # Beyond the image keys and values are zero, and are attended to: the reference has no mask here.
            above_px, below_px = margin - before.shape[0], margin - (below.shape[0] - q.shape[0])
            kv = F.pad(kv, (0, 0, margin, margin, above_px, below_px))
            shape = BandShape(
                q.shape[0] // window, width // window, window, key_window, heads, channels // heads, False
            )
            attended = self._attend(q, kv, bias, shape)
            before = x[rows.stop - margin : rows.stop].clone()
            x[rows] += self._linear(block.proj, attended)
        for rows in bands(x, 1):
            self._mlp_(block.norm2, block.mlp, x[rows])

    def _queries_and_keys(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (..., C), and keys and values side by side (..., 2C), each in memory of its own."""
        weight, bias = self._weights(layer)
        of_q, of_kv = (None, None) if bias is None else torch.split(bias, [x.shape[-1], 2 * x.shape[-1]])
        return self._product(x, weight[: x.shape[-1]], of_q), self._product(x, weight[x.shape[-1] :], of_kv)

    def _mlp_(self, norm: nn.LayerNorm, mlp: MLP, x: Tensor) -> None:
        hidden = F.gelu(self._linear(mlp.fc1, norm(x).to(self._dtype)))
        x += self._linear(mlp.fc2, hidden)

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return self._product(x, *self._weights(layer))

    @staticmethod
    def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return F.linear(x, weight, bias)
        # In float32 torch gives `F.linear` to MKL and convolutions to oneDNN, which is twice as fast where measured.
        # By its function for oneDNN alone: on one thread `F.conv2d` would choose another again.
        channels_first = _channels_first(x)
        return _image(
            torch.mkldnn_convolution(channels_first, weight[..., None, None], bias, (0, 0), (1, 1), (1, 1), 1)
        )

    def _conv(
        self, layer: nn.Module, x: Tensor, added: Tensor | None = None, of: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """A 3x3 convolution of x, or of what `of` makes of each of its pixels, in the type of products.

        Where `added` is given, it is added to that in place, and this is the result.
        """
        weight, bias = self._weights(layer)
        result = x.new_empty(*x.shape[:2], weight.shape[0], dtype=self._dtype) if added is None else added
        for rows in bands(x, 1, CONVOLUTION_BAND_PIXELS):
            read = rows_around(x, rows, of)
            convolved = _image(F.conv2d(_channels_first(read.to(self._dtype)), weight, bias, padding=(0, 1)))
            if added is None:
                result[rows] = convolved
            else:
                result[rows] += convolved
        return result

    def _weights(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """In the type of products; converted once, and again when they have changed."""
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        weight, bias = layer.weight, layer.bias
        if weight.dtype == self._dtype:
            return weight, bias
        # An inference tensor does not count its changes; outside of inference mode nobody can change it.
        identity = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in (weight, bias) if t is not None]
        if layer not in self._converted or self._converted[layer][0] != identity:
            converted = weight.to(self._dtype), None if bias is None else bias.to(self._dtype)
            self._converted[layer] = (identity, converted)
        return self._converted[layer][1]


def bands(x: Tensor, window: int, pixels: int | None = None) -> Iterator[slice]:
    """The rows of (H, W, C), some rows of windows at a time, of about so many pixels, else `BAND_PIXELS`."""
    step = window * max(1, (pixels or BAND_PIXELS) // (window * x.shape[1]))
    return (slice(top, min(top + step, x.shape[0])) for top in range(0, x.shape[0], step))


def rows_around(x: Tensor, rows: slice, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Those rows of (H, W, C), or of what `of` makes of each pixel, and the ones around them: zero beyond the image."""
    above, below = max(0, rows.start - 1), min(x.shape[0], rows.stop + 1)
    read = x[above:below] if of is None else of(x[above:below])
    missing = above - rows.start + 1, rows.stop + 1 - below
    return F.pad(read, (0, 0, 0, 0, *missing)) if any(missing) else read


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
    for place, part in zip((lower, wrapped), torch.split(added, [x[lower].shape[0], x[wrapped].shape[0]]), strict=True):
        x[place, shift:] += part[:, :-shift]
        x[place, :shift] += part[:, -shift:]


def _rolled(rows: slice, shift: int, height: int) -> tuple[slice, slice]:
    """Where rows come from in an image rolled up by `shift`: a run of rows, and one from the top edge on."""
    start, stop = rows.start + shift, rows.stop + shift
    return slice(start, min(stop, height)), slice(0, max(stop - height, 0))


def _conv_inside(x: Tensor, layer: nn.Module) -> Tensor:
    """A 3x3 convolution of rows that have been read with their neighbours: (h + 2, W, C) to (h, W, C')."""
    assert isinstance(layer, nn.Conv2d)
    return _image(F.conv2d(_channels_first(x), layer.weight, layer.bias, padding=(0, 1)))


def _channels_first(x: Tensor) -> Tensor:
    # In this order the strides are those that torch knows as channels-last; it would copy otherwise.
    return x.unsqueeze(0).permute(0, 3, 1, 2)


def _image(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).squeeze(0)
