"""Small videos, and what becomes of them where nothing goes wrong."""

from pathlib import Path

import torch

from tests.chaos.storm import OPTIONS
from tests.end_to_end.conftest import write_moving_video
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings


def videos_with_results(folder: Path, lengths: tuple[int, ...] = (48, 96, 168)) -> dict[Path, bytes]:
    """Videos of so many frames, and the bytes of an undisturbed run of `vsr upscale` with segments of 24 frames."""
    results = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every worker of the cluster
    for frames in lengths:
        video = write_moving_video(folder / f"{frames}-frames.mp4", frames)
        output = folder / f"{frames}-frames-undisturbed.mp4"
        settings = WorkerSettings(preset=OPTIONS.preset, device="cpu", segment_frames=24)
        upscale_file(video, output, OPTIONS, settings=settings, limits=VideoLimits())
        results[video] = output.read_bytes()
    torch.set_num_threads(threads)
    return results
