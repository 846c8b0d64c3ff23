"""Two seconds of a job, to look at before the rest is rendered: the frames that the result will have, as browsers play.

A preview is a plan of one short segment, rendered by the same pipeline: with the same neighbours, cuts, batches and
networks, so its frames are the result's until they are encoded, which is always as H.264 in 4:2:0.
"""

from bisect import bisect_left, bisect_right
from fractions import Fraction

from worker.contract.job import Container, VideoCodec
from worker.plan import SCALE, Plan, SegmentPlan
from worker.video.colour import encoded_picture

PREVIEW_SECONDS = 2
MAX_PREVIEW_FRAMES = 120
"""Also of a video of many frames per second: others wait for it."""

_CRF = 16


def preview_plan(plan: Plan, at_seconds: float) -> Plan:
    """Return the plan of the frames from `at_seconds` on, counted from the first frame; of the last one at least."""
    table = plan.survey.frames
    wanted = Fraction(at_seconds) / table.time_base + table.pts[0]
    first = max(0, bisect_right(table.pts, wanted) - 1)
    stop = bisect_left(table.pts, table.pts[first] + PREVIEW_SECONDS / table.time_base)
    segment = SegmentPlan(index=0, first=first, stop=min(max(stop, first + 1), first + MAX_PREVIEW_FRAMES))
    opaque = plan.survey.picture.model_copy(update={"has_alpha": False})
    picture, _ = encoded_picture(opaque, SCALE, VideoCodec.H264, Container.MP4, plan.survey.codec)
    encoding = plan.encoding.model_copy(
        update={
            "codec": VideoCodec.H264,
            "quality": "high",
            "crf": _CRF,
            "encoder_preset": "veryfast",
            "encoder_options": "",
        }
    )
    return plan.model_copy(
        update={
            "segments": (segment,),
            "encoding": encoding,
            "picture": picture.model_copy(update={"pixel_format": "yuv420p", "bit_depth": 8}),
        }
    )
