"""The two steps as one network: HAT enlarges the centre frame, the U-Net refines it with its neighbours."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from model.hardware import multiplies_bfloat16
from model.hat import HAT
from model.hat_in_bands import HATInBands, band_attention
from model.plain_surfaces import keep_plain_surfaces
from model.step_clock import StepClock
from model.tiling import tiles_of
from model.unet import SCALE, ConditionalUNet

PIXELS_PER_CPU_THREAD = 4096
"""Low-resolution pixels of a batch that a thread must have to itself; see `threads_for`."""


class DeviceUnavailableError(Exception):
    """A device was asked for by name and cannot be used; the message says what is missing."""


class TwoStepUpscaler(nn.Module):
    """`previous_lr`, `center_lr`, `next_lr`, each (B, 3, H, W) float32 RGB in [0, 1], to (B, 3, 2H, 2W) of the same.

    Anything else is refused with a ValueError. HAT runs once per frame, on the centres only, is frozen, and stays in
    evaluation mode in training too. On CUDA both networks run under bfloat16 autocast. On a CPU HAT runs in bands
    (`model.hat_in_bands`), its products in float32 or bfloat16 as `use_precision` says, and the U-Net in float32.

    On one machine the result is a function of the three frames and of the batch's shape, bit for bit: it does not
    depend on what else is in the batch, nor on the number of threads. Where memory is short, `use_tiles` makes it work
    piece by piece.
    """

    scale = SCALE

    def __init__(self, hat: HAT, unet: ConditionalUNet) -> None:
        super().__init__()
        if hat.config.upscale != self.scale:
            raise ValueError(f"this HAT upscales by {hat.config.upscale}, the second step needs {self.scale}")
        self.hat = hat.requires_grad_(False)
        self.unet = unet
        self.tile_px: int | None = None
        self.tile_overlap_px = 0
        self._products: torch.dtype | None = None
        self._hat_in_bands: HATInBands | None = None
        self.clock: StepClock | None = None
        """Where it is wanted to know what each step takes; whoever sets it calls `note_finished` after every call."""
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.hat.parameters()).device

    @property
    def products(self) -> torch.dtype:
        """What products are computed in: bfloat16 on CUDA and float32 on a CPU, where nothing else was asked for."""
        return self._products or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)

    def use_precision(self, name: str) -> None:
        """Compute products in "float32" or "bfloat16", or in what is fastest here, "auto"."""
        self._products = resolve_precision(name, self.device)
        self._hat_in_bands = None

    @property
    def arithmetic(self) -> str:
        """Names what, beside the weights and what is computed at a time, decides on bits: device, numbers, kernels."""
        numbers = {torch.float32: "f32", torch.bfloat16: "bf16"}[self.products]
        if self.device.type != "cpu":
            return f"{self.device.type}-{numbers}"
        return f"cpu-{numbers}-{self._bands().attention}"

    @property
    def tile_alignment_px(self) -> int:
        """Tiles and overlaps are multiples of this, so that windows lie where they do in a whole frame."""
        return math.lcm(self.hat.config.window_size, self.unet.config.multiple)

    def train(self, mode: bool = True) -> "TwoStepUpscaler":
        """Only the U-Net is ever trained."""
        super().train(mode)
        self.hat.eval()
        return self

    @property
    def default_tile_overlap_px(self) -> int:
        """What a tile should see around it: alignment looks as far as things move between two frames."""
        return 64 if self.unet.config.fusion == "aligned" else 32

    def use_tiles(self, tile_px: int | None, tile_overlap_px: int | None = None) -> None:
        """Work on tiles of `tile_px` low-resolution px, read with an overlap; None goes back to whole frames.

        The overlap is `default_tile_overlap_px` where none is given. A tiled result is close to the whole frame's but
        not equal: HAT's channel attention averages over all it is given, and motion is found within a tile.
        """
        if tile_overlap_px is None:
            tile_overlap_px = self.default_tile_overlap_px
        if tile_px is not None:
            for name, value in (("tile_px", tile_px), ("tile_overlap_px", tile_overlap_px)):
                if value % self.tile_alignment_px:
                    raise ValueError(f"{name} is {value}, which is not a multiple of {self.tile_alignment_px}")
            if tile_px < 1 or tile_overlap_px < 0:
                raise ValueError(
                    f"tile_px is {tile_px} and tile_overlap_px {tile_overlap_px}: at least 1 and 0 are needed"
                )
        self.tile_px, self.tile_overlap_px = tile_px, tile_overlap_px

    def forward(self, previous_lr: Tensor, center_lr: Tensor, next_lr: Tensor) -> Tensor:
        self.check(previous_lr, center_lr, next_lr)
        if self.tile_px is None:
            result = self.both_steps(previous_lr, center_lr, next_lr)
        else:
            result = self.forward_tiled(previous_lr, center_lr, next_lr, self.tile_px)
        return keep_plain_surfaces(result.clamp(0, 1), center_lr)

    def both_steps(self, previous_lr: Tensor, center_lr: Tensor, next_lr: Tensor) -> Tensor:
        """A whole frame or a tile through both networks: (B, 3, 2H, 2W) float32, not clamped."""
        with threads_for(center_lr):
            with self.timed("hat"):
                center_sr = self.enlarge(center_lr)
            with self.timed("unet"):
                return self.refine(center_sr, previous_lr, next_lr)

    def enlarge(self, center_lr: Tensor) -> Tensor:
        """The first step: (B, 3, H, W) to (B, 3, 2H, 2W) float32, without gradients, not clamped."""
        if self.device.type == "cpu":
            return self._bands()(center_lr)
        with torch.no_grad(), self.precision():
            enlarged: Tensor = self.hat(center_lr)
        return enlarged.float()

    def _bands(self) -> HATInBands:
        if self._hat_in_bands is None:
            self._hat_in_bands = HATInBands(self.hat, self.products, *band_attention(self.hat.config.window_size))
        return self._hat_in_bands

    def refine(self, center_sr: Tensor, previous_lr: Tensor, next_lr: Tensor) -> Tensor:
        """The second step: the enlarged centre and its neighbours to (B, 3, 2H, 2W) float32, not clamped."""
        with self.precision():
            refined: Tensor = self.unet(center_sr, previous_lr, next_lr)
        return refined.float()

    def forward_tiled(self, previous_lr: Tensor, center_lr: Tensor, next_lr: Tensor, tile_px: int) -> Tensor:
        """Tile by tile into one output: both steps, (B, 3, 2H, 2W) float32, not clamped."""
        batch, channels, height, width = center_lr.shape
        output = center_lr.new_empty(batch, channels, self.scale * height, self.scale * width)
        for tile in tiles_of(width, height, tile_px, self.tile_overlap_px):
            rows, columns = tile.read.slices()
            read = [frames[..., rows, columns] for frames in (previous_lr, center_lr, next_lr)]
            result = self.both_steps(*read)
            kept_rows, kept_columns = tile.kept.scaled(self.scale).slices()
            rows, columns = tile.core.scaled(self.scale).slices()
            output[..., rows, columns] = result[..., kept_rows, kept_columns]
        return output

    def timed(self, step: str) -> AbstractContextManager[None]:
        """Count what is done inside to `step`, where there is a clock."""
        return self.clock.timed(step, self.device) if self.clock else nullcontext()

    def precision(self) -> torch.autocast:
        """bfloat16 autocast on CUDA, unless float32 was asked for; nothing on the CPU, which leaves float32."""
        in_bfloat16 = self.device.type == "cuda" and self.products == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16)

    def check(self, previous_lr: Tensor, center_lr: Tensor, next_lr: Tensor) -> None:
        """Refuse what the networks would misread."""
        for name, frames in (("center_lr", center_lr), ("previous_lr", previous_lr), ("next_lr", next_lr)):
            if frames.ndim != 4:
                raise ValueError(f"{name} has {frames.ndim} dimensions, expected 4: (B, 3, H, W)")
            if frames.shape[1] != 3:
                raise ValueError(f"{name} has {frames.shape[1]} channels, expected 3 (RGB)")
            if frames.numel() == 0:
                raise ValueError(
                    f"{name} has the shape {tuple(frames.shape)}, expected at least one frame of one pixel"
                )
            if frames.dtype != torch.float32:
                raise ValueError(f"{name} is {frames.dtype}, expected {torch.float32}")
            if frames.shape != center_lr.shape:
                raise ValueError(f"{name} has the shape {tuple(frames.shape)}, center_lr has {tuple(center_lr.shape)}")
            if frames.device != self.device:
                raise ValueError(f"{name} is on {frames.device}, the networks are on {self.device}")
            low, high = (bound.item() for bound in frames.aminmax())
            if not (low >= 0 and high <= 1):  # Written so that NaN is refused too.
                raise ValueError(f"{name} ranges from {low:g} to {high:g}, expected 0 to 1")


@contextmanager
def threads_for(frames_lr: Tensor) -> Iterator[None]:
    """Have small batches computed by few threads, on a CPU and outside training.

    Where a convolution is small for the number of threads, oneDNN takes another algorithm, whose sums are rounded
    otherwise: the result would depend on the machine's cores, and on how many workers share them. Measured for 1 to 48
    threads, batches of 1 to 4 and 8x8 to 432x240 px, it does so from 2100 px per thread down.
    """
    if frames_lr.is_cuda or torch.is_grad_enabled():
        yield
        return
    batch, _, height, width = frames_lr.shape
    threads_before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads_before, batch * height * width // PIXELS_PER_CPU_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)


def resolve_device(name: str) -> torch.device:
    """The device for "auto", "cuda" or "cpu". Only "auto" may choose; a GPU asked for and not usable is an error."""
    if name not in ("auto", "cuda", "cpu"):
        raise ValueError(f"device must be 'auto', 'cuda' or 'cpu', not {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise DeviceUnavailableError(f"cuda was asked for, but this torch ({torch.__version__}) is built without CUDA")
    try:
        torch.cuda.current_device()  # Starts CUDA, which is where it fails.
    except RuntimeError as error:  # Torch's way of saying that the driver is missing or too old.
        raise DeviceUnavailableError(f"cuda was asked for, but CUDA does not start: {error}") from error
    if torch.cuda.device_count() == 0:
        raise DeviceUnavailableError("cuda was asked for, but the driver sees no GPU")
    return torch.device("cuda", 0)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """What to compute products in, for "auto", "float32" or "bfloat16". "auto": bfloat16 where that is the faster."""
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be 'auto', 'float32' or 'bfloat16', not {name!r}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" or multiplies_bfloat16() else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
