"""Several training processes as one: `torchrun --nproc-per-node N ...` starts them, DDP averages their gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.training.config import TrainingError
from model.upscaler import resolve_device

# One process may compute cached frames, or validate, for this long while the others wait.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """Which of all processes this one is, and where it computes. The first one alone writes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def agree(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """The mean loss, and whether any process was asked to stop: all must hear the same, or they would part ways."""
        if self.count == 1:
            return loss.item(), stop
        both = torch.tensor([0.0, float(stop)], dtype=torch.float64, device=self.device)
        both[0] = loss.detach()
        dist.all_reduce(both)
        total, stops = both.tolist()
        return total / self.count, stops > 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network as all processes train it together; alone, the network itself."""
        if self.count == 1:
            return network
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
            # Torch has synchronised batch normalisation on GPUs only, and N processes that each normalise over their
            # own share do not train what one would.
            if self.device.type != "cuda":
                raise TrainingError(
                    "this U-Net normalises over the batch, which several processes can share on GPUs only: "
                    "start one process, or train a preset without batch_norm"
                )
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Batch normalisation is synchronised, and HAT's tables never change: no buffer needs to be sent around.
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


@contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, each on its own GPU; without torchrun this process is all there is."""
    if not dist.is_torchelastic_launched():
        yield Ranks(0, 1, resolve_device(device_name))
        return
    device = resolve_device(device_name)
    if device.type == "cuda":
        local_rank = dist.get_node_local_rank()
        if local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"{torch.cuda.device_count()} GPUs are too few: process {local_rank + 1} of this machine has none"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
