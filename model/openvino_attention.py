"""Attention inside windows by OpenVINO, for HAT on a CPU: about three times as fast there as torch's own.

OpenVINO compiles products, softmax and changes of layout into one piece that stays in the processor's cache; torch has
no such kernel for attention with a bias. Weights are no part of it, so it is compiled once for a shape, in tenths
of a second, and serves all layers of a network.

Only imported where the package `openvino` is installed (extra `openvino`).
"""

from functools import lru_cache
from threading import Lock

import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch
from torch import Tensor

from model.hat_in_bands import BandShape

# A frame has seven kinds of band at most (whole and last ones of each kind of attention), and one in tiles nine sizes
# of them: with fewer, every layer would compile anew. Each keeps the memory it works in, so a new job forgets all.
_KEPT_SHAPES = 64
_in_use = Lock()
_TYPES = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16}


def attend_in_band(q: Tensor, kv: Tensor, biases: Tensor, shape: BandShape) -> Tensor:
    """The attention of one band of one image, as `model.hat_in_bands.BandAttention` says."""
    attended = torch.empty_like(q)
    inputs = [_shared(tensor) for tensor in (q, kv, *torch.split(biases, 1))]
    with _in_use:  # A request has one output at a time.
        request = _compiled(shape, q.dtype, torch.get_num_threads())
        request.set_output_tensor(_shared(attended))
        request.infer(inputs, share_inputs=True, share_outputs=True)
    return attended


def release_memory() -> None:
    """Forget all shapes: each keeps what it works in, together some hundred MiB for frames 1920 px wide."""
    with _in_use:
        _compiled.cache_clear()


def _shared(tensor: Tensor) -> ov.Tensor:
    if tensor.dtype == torch.bfloat16:  # which numpy has no word for
        return ov.Tensor(tensor.view(torch.int16).numpy(), list(tensor.shape), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


@lru_cache(maxsize=_KEPT_SHAPES)
def _compiled(shape: BandShape, dtype: torch.dtype, threads: int) -> ov.InferRequest:
    settings = {
        "INFERENCE_PRECISION_HINT": _TYPES[dtype].get_type_name(),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Several workers on one machine would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    return ov.Core().compile_model(band_model(shape, dtype), "CPU", settings).create_infer_request()


def band_model(shape: BandShape, dtype: torch.dtype) -> ov.Model:
    """The graph behind `attend_in_band`."""
    numbers = _TYPES[dtype]
    rows, columns, window, key_window, heads, head_channels, last_column_differs = shape
    channels, margin = heads * head_channels, shape.margin_px
    height, width = rows * window, columns * window
    q = op.parameter([height, width, channels], numbers)
    kv = op.parameter([height + 2 * margin, width + 2 * margin, 2 * channels], numbers)

    # Columns first, so that the last one can be told from the others.
    queries = _reshaped(q, rows, window, columns, window, channels)
    queries = _reshaped(_transposed(queries, 2, 0, 1, 3, 4), columns * rows, window**2, heads, head_channels)
    if margin:
        tops = np.arange(rows)[:, None] * window + np.arange(key_window)
        lefts = np.arange(columns)[:, None] * window + np.arange(key_window)
        kv_windows = op.gather(op.gather(kv, tops, np.int64(0)), lefts, np.int64(2))
    else:
        kv_windows = _reshaped(kv, rows, window, columns, window, 2 * channels)
    kv_windows = _transposed(kv_windows, 2, 0, 1, 3, 4)
    kv_windows = _reshaped(kv_windows, columns * rows, key_window**2, 2 * channels)
    keys, values = (
        _reshaped(half, columns * rows, key_window**2, heads, head_channels)
        for half in op.split(kv_windows, np.int64(2), 2).outputs()
    )

    sizes = [(columns - 1) * rows, rows] if last_column_differs else [columns * rows]
    biases = [op.parameter([1, heads, window**2, key_window**2], np.float32) for _ in sizes]
    attended = [
        _attended(q_part, k_part, v_part, bias, head_channels, numbers)
        for q_part, k_part, v_part, bias, size in zip(
            _split(queries, sizes), _split(keys, sizes), _split(values, sizes), biases, sizes, strict=True
        )
        if size  # A frame of one column of windows has only the last.
    ]
    windows = op.concat(attended, 0) if len(attended) > 1 else attended[0]
    image = _transposed(_reshaped(windows, columns, rows, window, window, channels), 1, 2, 0, 3, 4)
    return ov.Model([_reshaped(image, height, width, channels)], [q, kv, *biases], "attention")


def _attended(
    q: ov.Output | ov.Node, k: ov.Output, v: ov.Output, bias: ov.Node, head_channels: int, numbers: ov.Type
) -> ov.Node:
    """(windows, pixels, n, d) each to the same: this very pattern is what OpenVINO makes one piece of."""
    q = op.multiply(_transposed(q, 0, 2, 1, 3), op.constant(head_channels**-0.5, dtype=numbers))
    logits = op.add(op.matmul(q, _transposed(k, 0, 2, 3, 1), False, False), op.convert(bias, numbers))
    return _transposed(op.matmul(op.softmax(logits, 3), _transposed(v, 0, 2, 1, 3), False, False), 0, 2, 1, 3)


def _split(tensor: ov.Node, sizes: list[int]) -> list[ov.Output]:
    return list(op.variadic_split(tensor, np.int64(0), np.array(sizes)).outputs()) if len(sizes) > 1 else [tensor]


def _reshaped(tensor: ov.Node, *shape: int) -> ov.Node:
    return op.reshape(tensor, np.array(shape), False)


def _transposed(tensor: ov.Node, *order: int) -> ov.Node:
    return op.transpose(tensor, np.array(order))
