"""How long a job would take and how large its result would be, from what finished segments have cost lately."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from app.acceptance import refuse_unknown_preset
from app.bodies import json_body, read_json
from app.dependencies import Services, ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    QueueUnavailableError,
    UnauthorizedError,
    UnknownPresetError,
    UploadStalledError,
    responses,
)
from app.metrics import worker_states
from app.schemas import Estimate, EstimateWish
from worker.contract.job import Container, JobRecord, Progress, VideoCodec
from worker.contract.speeds import bytes_per_pixel, seconds_per_pixel

# Jobs under way that are looked at one by one; each of the others is taken to be as long as the one in question.
_MOST_LOOKED_AT = 100
# Where the source and the wish do not demand another. As `worker.plan` chooses.
_USUAL_CODECS = {Container.WEBM: VideoCodec.AV1, Container.ZIP: VideoCodec.PNG}

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_api_key)])


async def estimate_wish(request: Request, services: ServicesDep) -> EstimateWish:
    wish = await read_json(request, services.settings, EstimateWish)
    refuse_unknown_preset(wish, services.settings)
    return wish


@router.post(
    "/v1/estimate",
    summary="Estimate a job",
    responses=responses(
        UnauthorizedError, UploadStalledError, InvalidRequestError, UnknownPresetError, QueueUnavailableError
    ),
    openapi_extra=json_body(EstimateWish),
)
async def post_estimate(services: ServicesDep, wish: Annotated[EstimateWish, Depends(estimate_wish)]) -> Estimate:
    """Nothing is kept of it. What was not measured on this service yet is null."""
    return await run_in_threadpool(_estimate, services, wish)


def _estimate(services: Services, wish: EstimateWish) -> Estimate:
    options, frames = wish.options, wish.frames_asked
    pixels = wish.width * wish.height * frames
    workers = max(1, len(worker_states(services.redis)))
    codec = options.codec or _USUAL_CODECS.get(options.container or Container.MP4, VideoCodec.H264)
    cost = seconds_per_pixel(services.redis, options)
    size = bytes_per_pixel(services.redis, options, codec)
    seconds = None if cost is None else cost * pixels / workers
    return Estimate(
        frames=frames,
        seconds=None if seconds is None else round(seconds, 1),
        wait_seconds=None if seconds is None else round(_others_seconds(services, seconds, workers), 1),
        frames_per_second=None if seconds is None else round(frames / seconds, 3),
        result_bytes=None if size is None else round(size * pixels),
        basis="unknown" if seconds is None else "measured",
    )


def _others_seconds(services: Services, own_seconds: float, workers: int) -> float:
    """What the jobs that are there add to one of `own_seconds`.

    They take turns with it: so each adds the rest of its own work, but no more than this one takes itself.
    """
    others = services.registry.unfinished_ids()
    looked_at = services.registry.get_all(others[:_MOST_LOOKED_AT])
    progress = services.registry.progress_of([record.id for record in looked_at])
    kinds = {record.options for record in looked_at}
    costs = {options: seconds_per_pixel(services.redis, options) for options in kinds}
    rests = (
        _remaining_seconds(record, live, costs[record.options], workers)
        for record, live in zip(looked_at, progress, strict=True)
    )
    known = sum(own_seconds if rest is None else min(rest, own_seconds) for rest in rests)
    return known + own_seconds * max(0, len(others) - _MOST_LOOKED_AT)


def _remaining_seconds(record: JobRecord, progress: Progress, cost: float | None, workers: int) -> float | None:
    """Of a job that waits or runs; None where its length or its speed is not known. `cost`: seconds per pixel."""
    if record.status.is_final:
        return 0.0
    if record.source is None or cost is None:
        return None
    pixels = record.source.width * record.source.height * max(0, record.source.frames - progress.frames_done)
    return cost * pixels / workers
