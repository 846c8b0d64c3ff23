"""The same source and options give the same bytes, for any number of workers and every codec on offer."""

from pathlib import Path

from tests.end_to_end.conftest import OPTIONS, House, write_moving_video
from worker.contract.job import Container, JobOptions, JobStatus, VideoCodec
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

SEGMENT_FRAMES = 6


def options_for(codec: VideoCodec) -> JobOptions:
    container = Container.ZIP if codec is VideoCodec.PNG else Container.MKV
    return OPTIONS.model_copy(update={"codec": codec, "container": container})


def test_every_codec_gives_the_same_bytes_for_one_process_and_for_several(house: House, tmp_path: Path) -> None:
    # Given what one process makes of a video of four segments, with each codec
    source = write_moving_video(tmp_path / "source.mkv", 4 * SEGMENT_FRAMES, width=96, height=72)
    settings = WorkerSettings(preset=OPTIONS.preset, device="cpu", segment_frames=SEGMENT_FRAMES)
    alone = {}
    for codec in VideoCodec:
        options = options_for(codec)
        output = tmp_path / f"{codec}.{options.container}"
        upscale_file(source, output, options, settings=settings, limits=VideoLimits())
        alone[codec] = output.read_bytes()

    for workers in (2, 4):
        # When several share the same work
        with house.workers(workers, VSR_SEGMENT_FRAMES=str(SEGMENT_FRAMES)):
            jobs = {codec: house.submit(source, options=options_for(codec)) for codec in VideoCodec}
            ends = {codec: house.wait_for_end(job_id) for codec, job_id in jobs.items()}

        # Then not a byte differs
        assert {codec: job.error for codec, job in ends.items() if job.status is not JobStatus.SUCCEEDED} == {}
        same = {codec: house.result(job_id) == alone[codec] for codec, job_id in jobs.items()}
        assert same == dict.fromkeys(jobs, True)
