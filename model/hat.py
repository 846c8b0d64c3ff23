"""HAT, the hybrid attention transformer for image super-resolution (Chen et al., CVPR 2023), written from the paper.

Legend: B batch, C channels (embed_dim), H W low-resolution height and width, s scale, n heads, w window side. Inside
the body images are (B, H, W, C), because linear layers and LayerNorm act on the last axis; a convolution sees the same
memory as channels-last (B, C, H, W), without a copy.

Names of modules, and so the state-dict keys, are those of the published checkpoints.
"""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.padding import pad_to_multiple

# The mean colour of DIV2K, which the published checkpoints were trained with.
RGB_MEAN = (0.4488, 0.4371, 0.4040)

# Added to the attention logits of pixel pairs that a cyclic shift made neighbours (Swin Transformer, section 3.2).
MASKED_LOGIT = -100.0


@dataclass(frozen=True)
class HATConfig:
    """A HAT by the argument names of its reference constructor; the defaults are the published HAT x2.

    `num_feat`, the channels between the body and the pixel shuffle, is a constant 64 in the reference; small presets
    narrow it. The `InitVar`s are accepted so that published configurations construct, and dropped: they only matter for
    training code that is not here.
    """

    upscale: int = 2
    in_chans: int = 3
    window_size: int = 16
    compress_ratio: int = 3
    squeeze_factor: int = 30
    conv_scale: float = 0.01
    overlap_ratio: float = 0.5
    img_range: float = 1.0
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    embed_dim: int = 180
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    num_feat: int = 64
    upsampler: str = "pixelshuffle"
    resi_connection: str = "1conv"
    img_size: InitVar[int | None] = None
    drop_rate: InitVar[float | None] = None
    attn_drop_rate: InitVar[float | None] = None
    drop_path_rate: InitVar[float | None] = None
    use_checkpoint: InitVar[bool | None] = None

    def __post_init__(self, *_training_only: object) -> None:
        # JSON has lists only.
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "num_heads", tuple(self.num_heads))
        if self.upscale not in (2, 3, 4):
            raise ValueError(f"HAT upscales by 2, 3 or 4, not by {self.upscale}")
        if self.in_chans != len(RGB_MEAN):
            raise ValueError(f"HAT takes {len(RGB_MEAN)} channels (RGB), not {self.in_chans}")
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths names {len(self.depths)} groups but num_heads names {len(self.num_heads)}")
        for heads in self.num_heads:
            if self.embed_dim % heads:
                raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {heads}")
        if self.window_size % 2 or self.overlap_px % 2:
            raise ValueError(f"window_size {self.window_size} and the overlap {self.overlap_px} px must both be even")
        if self.upsampler != "pixelshuffle":
            raise ValueError(f"upsampler must be 'pixelshuffle', not {self.upsampler!r}")
        if self.resi_connection != "1conv":
            raise ValueError(f"resi_connection must be '1conv', not {self.resi_connection!r}")

    @property
    def overlap_px(self) -> int:
        """How much wider than a window its keys reach in the overlapping cross-attention, both sides together."""
        return int(self.window_size * self.overlap_ratio)

    def to_json_fields(self) -> dict[str, object]:
        """The fields as plain JSON values, ready for `HATConfig(**fields)`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class ChannelAttention(nn.Module):
    """Scale every channel by a gate computed from the mean of all channels over the whole image."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        squeezed = max(1, channels // squeeze_factor)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x.mean((2, 3), dtype=torch.float32))[..., None, None]

    def gates(self, means: Tensor) -> Tensor:
        """What channels are to be multiplied by, from their means, both (..., C)."""
        _, squeeze, _, excite, _ = self.attention
        assert isinstance(squeeze, nn.Conv2d)
        assert isinstance(excite, nn.Conv2d)
        # The same sums as `self.attention(x)`, as linear layers: a 1x1 convolution of a 1x1 image is computed in
        # another order on one thread than on several, and a result must not depend on the number of threads.
        squeezed = F.relu(F.linear(means, squeeze.weight.flatten(1), squeeze.bias))
        return torch.sigmoid(F.linear(squeezed, excite.weight.flatten(1), excite.bias))


class ChannelAttentionBlock(nn.Module):
    """CAB: two convolutions through a bottleneck, then channel attention. (B, H, W, C) to the same."""

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(channels, channels // compress_ratio, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels // compress_ratio, channels, 3, padding=1),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        return on_channels_last(self.cab, x)


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        y: Tensor = self.fc2(hidden)
        return y


class RelativePositionBias(nn.Module):
    """A learnt number per head and relative position, laid out as the (n, queries, keys) bias of the attention logits.

    At inference the laid-out bias is kept until its table changes; in training it is laid out anew so that it has a
    gradient.
    """

    relative_position_bias_table: nn.Parameter

    def __init__(self, positions: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty(positions, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._kept: tuple[object, Tensor] | None = None

    def bias(self, index: Tensor, masks: Tensor | None = None) -> Tensor:
        """(n, q, k) from the table and the (q, k) index; with (m, q, k) masks added, (m, n, q, k)."""
        table = self.relative_position_bias_table
        if torch.is_grad_enabled() or table.is_inference():  # An inference tensor does not count its changes.
            self._kept = None
            return self._lay_out(index, masks)
        identity = (table._version, table.data_ptr(), table.dtype, table.device)
        if self._kept is None or self._kept[0] != identity:
            self._kept = (identity, self._lay_out(index, masks))
        return self._kept[1]

    def _lay_out(self, index: Tensor, masks: Tensor | None) -> Tensor:
        # Indexing, not gather: the overlapping attention's index has negative entries, which wrap as in the reference.
        bias = self.relative_position_bias_table[index].permute(2, 0, 1).contiguous()
        return bias if masks is None else bias + masks.unsqueeze(1).to(bias.dtype)


class WindowAttention(RelativePositionBias):
    """(S)W-MSA: self-attention inside windows of w x w pixels; with a shift, of an image rolled by it (B, H, W, C)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, qkv_bias: bool) -> None:
        super().__init__((2 * window - 1) ** 2, heads)
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        masks = shifted_window_masks(window, shift) if shift else torch.zeros(1, window**2, window**2)
        self.register_buffer("masks", masks, persistent=False)
        self.masks: Tensor

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        biases = self.bias(index, self.masks)
        # Without a shift all windows are alike. With one, the last row and the last column of windows hold pixels from
        # opposite edges: interior, right rim, bottom rim and corner each have a mask. Four small attentions, instead of
        # one with a mask per window, which would be hundreds of MB for a 640x360 frame.
        if not self.shift:
            return self.rows_of_windows(x, biases)
        inner, last_row = torch.split(x, [x.shape[1] - self.window, self.window], dim=1)
        x = torch.cat([self.rows_of_windows(inner, biases[:2]), self.rows_of_windows(last_row, biases[2:])], dim=1)
        return x.roll((self.shift, self.shift), dims=(1, 2))

    def rows_of_windows(self, x: Tensor, biases: Tensor) -> Tensor:
        """Attention inside some rows of windows; `biases` of the inner columns and, with a shift, of the last one."""
        batch, height, width, channels = x.shape
        rows, columns, w = height // self.window, width // self.window, self.window
        qkv = self.qkv(x).view(batch, rows, w, columns, w, 3, self.heads, channels // self.heads)
        qkv = qkv.permute(3, 5, 0, 1, 6, 2, 4, 7)  # (columns, 3, B, rows, heads, w, w, C / heads)
        parts = torch.split(qkv, [columns - 1, 1]) if self.shift else (qkv,)
        attended = []
        for part, bias in zip(parts, biases, strict=True):
            q, k, v = part.transpose(0, 1).flatten(1, 3).flatten(3, 4)  # (windows, heads, w * w, C / heads) each
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).unsqueeze(0))
            attended.append(out.view(part.shape[0], batch, rows, self.heads, w, w, channels // self.heads))
        # Back from (columns, B, rows, heads, y, x, C / heads)
        columns_first = torch.cat(attended) if len(attended) > 1 else attended[0]
        x = columns_first.permute(1, 2, 4, 0, 5, 3, 6).reshape(batch, height, width, channels)
        projected: Tensor = self.proj(x)
        return projected


class HybridAttentionBlock(nn.Module):
    """HAB: window attention and channel attention side by side, then an MLP (paper, equation 2)."""

    def __init__(self, config: HATConfig, heads: int, shift: int) -> None:
        super().__init__()
        channels = config.embed_dim
        self.conv_scale = config.conv_scale
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, config.window_size, shift, config.qkv_bias)
        self.conv_block = ChannelAttentionBlock(channels, config.compress_ratio, config.squeeze_factor)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, int(channels * config.mlp_ratio))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = torch.add(x + self.attn(normed, index), self.conv_block(normed), alpha=self.conv_scale)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class OverlappingCrossAttentionBlock(RelativePositionBias):
    """OCAB: the queries of a window see the keys and values of a larger window around it (paper, equation 4)."""

    def __init__(self, config: HATConfig, heads: int) -> None:
        channels, window = config.embed_dim, config.window_size
        key_window = window + config.overlap_px
        super().__init__((window + key_window - 1) ** 2, heads)
        self.heads, self.window, self.key_window = heads, window, key_window
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, int(channels * config.mlp_ratio))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        rows, columns, w, k = height // self.window, width // self.window, self.window, self.key_window
        q, kv = self.qkv(self.norm1(x)).split([channels, 2 * channels], dim=-1)
        q = q.reshape(batch, rows, w, columns, w, self.heads, channels // self.heads).permute(0, 1, 3, 5, 2, 4, 6)
        q = q.flatten(0, 2).flatten(2, 3)  # (windows, heads, w * w, C / heads)
        # Beyond the image keys and values are zero, and are attended to: the reference has no mask here.
        margin = (k - w) // 2
        kv = F.pad(kv, (0, 0, margin, margin, margin, margin)).unfold(1, k, w).unfold(2, k, w)
        kv = kv.view(batch, rows, columns, 2, self.heads, channels // self.heads, k, k)
        keys, values = kv.permute(3, 0, 1, 2, 4, 6, 7, 5).flatten(1, 3).flatten(3, 4)
        bias = self.bias(index).to(q.dtype).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
        out = out.view(batch, rows, columns, self.heads, w, w, channels // self.heads).permute(0, 1, 4, 2, 5, 3, 6)
        x = x + self.proj(out.reshape(batch, height, width, channels))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class AttentionBlocks(nn.Module):
    """The HABs of a group, every second one shifted by half a window, then its OCAB."""

    def __init__(self, config: HATConfig, depth: int, heads: int) -> None:
        super().__init__()
        shifts = [0 if block % 2 == 0 else config.window_size // 2 for block in range(depth)]
        self.blocks = nn.ModuleList(HybridAttentionBlock(config, heads, shift) for shift in shifts)
        self.overlap_attn = OverlappingCrossAttentionBlock(config, heads)

    def forward(self, x: Tensor, index: Tensor, overlap_index: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, index)
        y: Tensor = self.overlap_attn(x, overlap_index)
        return y


class ResidualHybridAttentionGroup(nn.Module):
    """RHAG: attention blocks and a convolution, around which the input is added."""

    def __init__(self, config: HATConfig, depth: int, heads: int) -> None:
        super().__init__()
        self.residual_group = AttentionBlocks(config, depth, heads)
        self.conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)

    def forward(self, x: Tensor, index: Tensor, overlap_index: Tensor) -> Tensor:
        return x + on_channels_last(self.conv, self.residual_group(x, index, overlap_index))


class HAT(nn.Module):
    """(B, 3, H, W) to (B, 3, sH, sW), RGB of nominal range [0, 1]; the output is not clamped. Any H and W from 1 up."""

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        self.config = config
        channels, window = config.embed_dim, config.window_size
        self.register_buffer("relative_position_index_SA", relative_position_index(window))
        self.register_buffer(
            "relative_position_index_OCA", overlapping_position_index(window, window + config.overlap_px)
        )
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.relative_position_index_SA: Tensor
        self.relative_position_index_OCA: Tensor

        self.conv_first = nn.Conv2d(config.in_chans, channels, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(channels)})
        self.layers = nn.ModuleList(
            ResidualHybridAttentionGroup(config, depth, heads)
            for depth, heads in zip(config.depths, config.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(channels)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(channels, config.num_feat, 3, padding=1), nn.LeakyReLU())
        self.upsample = pixel_shuffle_stages(config.upscale, config.num_feat)
        self.conv_last = nn.Conv2d(config.num_feat, config.in_chans, 3, padding=1)
        self.apply(_initialise_linear)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        x = pad_to_multiple(lr, self.config.window_size)
        # A bfloat16 step is up to a whole 8-bit level, and the picture itself runs along here: under autocast only the
        # body, which finds what is to be added to it, is computed in bfloat16.
        with torch.autocast(lr.device.type, enabled=False):
            x = (x - self.mean) * self.config.img_range
            shallow = self.conv_first(x.contiguous(memory_format=torch.channels_last))
        deep = self.conv_after_body(self.body(shallow)) + shallow
        with torch.autocast(lr.device.type, enabled=False):
            x = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
            sr: Tensor = x / self.config.img_range + self.mean
        return sr[..., : height * self.config.upscale, : width * self.config.upscale]

    def body(self, x: Tensor) -> Tensor:
        """The deep features of shallow ones, both (B, C, H, W)."""
        x = self.patch_embed["norm"](x.permute(0, 2, 3, 1))
        for group in self.layers:
            x = group(x, self.relative_position_index_SA, self.relative_position_index_OCA)
        normed: Tensor = self.norm(x)
        return normed.permute(0, 3, 1, 2)


def on_channels_last(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer that expects (B, C, H, W) to (B, H, W, C)."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def pixel_shuffle_stages(scale: int, channels: int) -> nn.Sequential:
    """Upscale by 3 at once, or by 2 as often as the scale asks."""
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    stages: list[nn.Module] = []
    for factor in factors:
        stages.append(nn.Conv2d(channels, factor**2 * channels, 3, padding=1))
        stages.append(nn.PixelShuffle(factor))
    return nn.Sequential(*stages)


def shifted_window_masks(window: int, shift: int) -> Tensor:
    """(4, w * w, w * w): MASKED_LOGIT between pixels that came from opposite edges, for the four kinds of window."""
    wrapped = torch.arange(window) >= window - shift
    neither = torch.zeros_like(wrapped)
    masks = []
    for rows_wrap, columns_wrap in ((neither, neither), (neither, wrapped), (wrapped, neither), (wrapped, wrapped)):
        origin = (2 * rows_wrap.int()[:, None] + columns_wrap.int()[None, :]).flatten()
        masks.append((origin[:, None] != origin[None, :]) * MASKED_LOGIT)
    return torch.stack(masks)


def relative_position_index(window: int) -> Tensor:
    """(w * w, w * w) int64: the row of the bias table for a query pixel and a key pixel of one window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy = y.flatten()[:, None] - y.flatten()[None, :] + window - 1
    dx = x.flatten()[:, None] - x.flatten()[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def overlapping_position_index(window: int, key_window: int) -> Tensor:
    """(w * w, k * k) int64, the same for a query window and the larger key window around it.

    The published models were trained with an offset that leaves some entries negative; they wrap to the end of the
    table.
    """
    query_y, query_x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    key_y, key_x = torch.meshgrid(torch.arange(key_window), torch.arange(key_window), indexing="ij")
    offset = window - key_window + 1
    dy = key_y.flatten()[None, :] - query_y.flatten()[:, None] + offset
    dx = key_x.flatten()[None, :] - query_x.flatten()[:, None] + offset
    return dy * (window + key_window - 1) + dx


def start_as_bilinear(hat: HAT) -> None:
    """Set the first and last layers of an x2 HAT so that, untrained, it nearly enlarges bilinearly.

    Three channels carry the colours from the first convolution to the last, so that training starts with the residual
    and not with learning to copy. Every other weight keeps its random start.
    """
    if hat.config.upscale != 2:
        raise ValueError(f"the bilinear start is for an upscale of 2, not {hat.config.upscale}")
    # Lifts the carried colours above zero, where the LeakyReLU changes nothing.
    lift = 1.0
    # For the two output pixels of an input pixel: the weights of the pixel before, the pixel itself, the pixel after.
    taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
    weights = hat.state_dict()
    with torch.no_grad():
        weights["conv_after_body.weight"].mul_(0.1)
        weights["conv_last.weight"].mul_(0.1)
        for layer in ("conv_first", "conv_after_body", "conv_before_upsample.0", "conv_last"):
            weights[f"{layer}.weight"][:3] = 0
            weights[f"{layer}.bias"][:3] = 0
        for colour in range(3):
            for layer in ("conv_first", "conv_before_upsample.0", "conv_last"):
                weights[f"{layer}.weight"][colour, colour, 1, 1] = 1
            weights["conv_before_upsample.0.bias"][colour] = lift
            weights["conv_last.bias"][colour] = -lift
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                phase = 4 * colour + 2 * i + j
                weights["upsample.0.weight"][phase] = 0
                weights["upsample.0.weight"][phase, colour] = torch.outer(taps[i], taps[j])
                weights["upsample.0.bias"][phase] = 0


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
