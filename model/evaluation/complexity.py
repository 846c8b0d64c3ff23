"""What a network costs: parameters, multiply-adds, and milliseconds on the machine at hand."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model.data import SCALE
from model.evaluation.contenders import PLAIN, Contender, Method, as_served, hat_alone, on_device, two_steps

# Stops repeating a slow measurement; one run after the warm-up is always taken.
TIMING_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class Cost:
    """What a method costs for one frame of `width` x `height` low-resolution px; None is not measured."""

    method: Method
    width: int
    height: int
    parameters: int
    multiply_adds: int | None
    milliseconds: float | None


def measure_costs(
    contenders: Sequence[Contender], *, width: int, height: int, repetitions: int, device: torch.device
) -> list[Cost]:
    """Parameters, multiply-adds and, with `repetitions` above 0, the median time of one low-resolution frame.

    Times are of one frame at a time on `device`, after one call to warm up; those of two steps hold both.
    """
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    small, large = (1, 3, height, width), (1, 3, SCALE * height, SCALE * width)
    sr = torch.zeros(large, device=device)

    def timed(work: Callable[[], Tensor]) -> float | None:
        return median_milliseconds(work, device, repetitions) if repetitions else None

    costs = [Cost(method, width, height, 0, None, timed(partial(enlarge, lr))) for method, enlarge in PLAIN.items()]
    first_steps: dict[str, Cost] = {}
    for contender in contenders:
        on_device(contender, device)
        hat, unet = contender.hat, contender.unet
        if contender.hat_sha256 not in first_steps:
            measured = (parameters(hat), multiply_adds(hat, small), timed(partial(as_served, hat, lr)))
            first_steps[contender.hat_sha256] = Cost(hat_alone(contender), width, height, *measured)
            costs.append(first_steps[contender.hat_sha256])
        if unet is not None:
            first = first_steps[contender.hat_sha256]
            both = (first.multiply_adds or 0) + multiply_adds(unet, large, small, small)
            second_milliseconds = timed(partial(as_served, unet, sr, lr, lr))
            total = (first.milliseconds or 0) + second_milliseconds if second_milliseconds else None
            method = two_steps(contender, "trained-control" if contender.is_control else "two-step")
            costs.append(Cost(method, width, height, parameters(hat, unet), both, total))
    return costs


def parameters(*networks: nn.Module) -> int:
    """How many learnt numbers the networks hold together."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def multiply_adds(network: nn.Module, *input_shapes: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products, attention's among them, for inputs of these shapes.

    Nothing is computed: torch runs the network on shapes alone. One multiply-add is two FLOPs. Normalisation,
    activations and sampling are not counted, as is usual.
    """
    # Here, not above: they load torch's compiler, and nothing else needs it.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # A fresh one, as a network may keep what it has worked out, and must not keep what has no values.
    fresh = type(network)(network.config).eval()
    counter = FlopCounterMode(display=False)
    # The counter knows attention as two matrix products, but not by the name of its fused form on a CPU.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        fresh(*(torch.empty(shape) for shape in input_shapes))
    return counter.get_total_flops() // 2


def median_milliseconds(work: Callable[[], Tensor], device: torch.device, repetitions: int) -> float:
    """The median time of `work`, called up to `repetitions` times after one call to warm up."""
    seconds: list[float] = []
    for _ in range(repetitions + 1):
        began_at = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # A GPU answers before it has finished.
        seconds.append(time.perf_counter() - began_at)
        if len(seconds) > 1 and sum(seconds) > TIMING_SECONDS_MAX:
            break
    return 1000 * statistics.median(seconds[1:])
