"""HAT by its formula, as plainly as the paper states it: what the speed of `model.hat` is measured against.

Everything that makes ours fast is left out on purpose: windows are partitioned and put back by copies, attention
matrices stand in memory as a whole, the bias is gathered and the mask computed anew in every pass, overlapping windows
are unfolded, linear layers are `F.linear`, and images change between channels-first and channels-last wherever a
layer asks for it. It computes with the parameters of a `HAT`, so weights and state-dict keys are the same.

Equations are those of Chen et al., *Activating More Pixels in Image Super-Resolution Transformer*, CVPR 2023. B batch,
C channels, H W height and width, n heads, d channels per head, w window side, k key window side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.hat import (
    HAT,
    MASKED_LOGIT,
    MLP,
    HybridAttentionBlock,
    OverlappingCrossAttentionBlock,
    ResidualHybridAttentionGroup,
    WindowAttention,
)


def reference_forward(hat: HAT, lr: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3, sH, sW), as `hat(lr)`. H and W must be multiples of the window."""
    window = hat.config.window_size
    if lr.shape[-2] % window or lr.shape[-1] % window:
        raise ValueError(f"the reference takes multiples of {window} px, not {lr.shape[-1]}x{lr.shape[-2]}")
    mask = shifted_window_mask(lr.shape[-2], lr.shape[-1], window, window // 2, lr.device)
    x = (lr - hat.mean) * hat.config.img_range
    shallow = hat.conv_first(x)
    tokens = hat.patch_embed["norm"](shallow.flatten(2).transpose(1, 2))
    for group in hat.layers:
        assert isinstance(group, ResidualHybridAttentionGroup)
        tokens = residual_group(hat, group, tokens, shallow.shape, mask)
    tokens = hat.norm(tokens)
    deep = hat.conv_after_body(tokens.transpose(1, 2).reshape(shallow.shape)) + shallow
    sr: Tensor = hat.conv_last(hat.upsample(hat.conv_before_upsample(deep)))
    return sr / hat.config.img_range + hat.mean


def residual_group(
    hat: HAT, group: ResidualHybridAttentionGroup, tokens: Tensor, shape: torch.Size, mask: Tensor
) -> Tensor:
    """RHAG: HABs, one OCAB and a convolution (section 3.1). Tokens are (B, H W, C)."""
    x = tokens
    for block in group.residual_group.blocks:
        assert isinstance(block, HybridAttentionBlock)
        x = hybrid_attention(block, x, shape, hat.relative_position_index_SA, mask)
    x = overlapping_cross_attention(group.residual_group.overlap_attn, x, shape, hat.relative_position_index_OCA)
    image = x.transpose(1, 2).reshape(shape)
    return group.conv(image).flatten(2).transpose(1, 2) + tokens


def hybrid_attention(block: HybridAttentionBlock, x: Tensor, shape: torch.Size, index: Tensor, mask: Tensor) -> Tensor:
    """HAB (equation 2)."""
    batch, channels, height, width = shape
    attention = block.attn
    normed = block.norm1(x).view(batch, height, width, channels)
    convolved = block.conv_block.cab[:3](normed.permute(0, 3, 1, 2))
    gate = block.conv_block.cab[3].attention(convolved)
    convolved = (convolved * gate).permute(0, 2, 3, 1).contiguous().view(batch, height * width, channels)

    shift = attention.shift
    rolled = torch.roll(normed, (-shift, -shift), dims=(1, 2)) if shift else normed
    windows = window_partition(rolled, attention.window).view(-1, attention.window**2, channels)
    attended = window_attention(attention, windows, index, mask if shift else None)
    attended = window_reverse(attended, attention.window, height, width)
    attended = torch.roll(attended, (shift, shift), dims=(1, 2)) if shift else attended
    x = x + attended.reshape(batch, height * width, channels) + convolved * block.conv_scale
    return x + feed_forward(block.mlp, block.norm2(x))


def window_attention(attention: WindowAttention, windows: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """(S)W-MSA of (windows, w w, C) (equation 3)."""
    count, pixels, channels = windows.shape
    heads = attention.heads
    qkv = F.linear(windows, attention.qkv.weight, attention.qkv.bias)
    q, k, v = qkv.reshape(count, pixels, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    logits = (q * (channels // heads) ** -0.5) @ k.transpose(-2, -1)
    logits = logits + position_bias(attention.relative_position_bias_table, index)
    if mask is not None:
        logits = logits.view(-1, len(mask), heads, pixels, pixels) + mask[:, None]
        logits = logits.view(count, heads, pixels, pixels)
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(count, pixels, channels)
    return F.linear(out, attention.proj.weight, attention.proj.bias)


def overlapping_cross_attention(
    block: OverlappingCrossAttentionBlock, x: Tensor, shape: torch.Size, index: Tensor
) -> Tensor:
    """OCAB (equation 4): keys and values of unfolded, overlapping windows."""
    batch, channels, height, width = shape
    heads, window, key_window = block.heads, block.window, block.key_window
    normed = block.norm1(x).view(batch, height, width, channels)
    qkv = F.linear(normed, block.qkv.weight, block.qkv.bias).reshape(batch, height, width, 3, channels)
    query, key, value = qkv.permute(3, 0, 4, 1, 2)
    queries = window_partition(query.permute(0, 2, 3, 1), window).view(-1, window**2, channels)
    unfolded = F.unfold(
        torch.cat((key, value), dim=1), key_window, stride=window, padding=(key_window - window) // 2
    )  # (B, 2 C k k, windows)
    unfolded = unfolded.view(batch, 2, channels, key_window**2, -1).permute(1, 0, 4, 3, 2)
    keys, values = unfolded.reshape(2, -1, key_window**2, channels)

    def split(tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), -1, heads, channels // heads).permute(0, 2, 1, 3)

    logits = (split(queries) * (channels // heads) ** -0.5) @ split(keys).transpose(-2, -1)
    logits = logits + position_bias(block.relative_position_bias_table, index)
    out = (logits.softmax(dim=-1) @ split(values)).transpose(1, 2).reshape(len(queries), window**2, channels)
    out = window_reverse(out, window, height, width).reshape(batch, height * width, channels)
    x = F.linear(out, block.proj.weight, block.proj.bias) + x
    return x + feed_forward(block.mlp, block.norm2(x))


def feed_forward(mlp: MLP, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """(1, n, queries, keys)."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (windows, w, w, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, channels)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """(windows, w w, C) to (B, H, W, C)."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)


def shifted_window_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, w w, w w): MASKED_LOGIT between pixels that a roll by `shift` made neighbours."""
    regions = torch.zeros(1, height, width, 1, device=device)
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bounds for columns in bounds):
        regions[:, rows, columns] = number
    windows = window_partition(regions, window).view(-1, window**2)
    return (windows[:, None] != windows[:, :, None]) * MASKED_LOGIT
