"""What is watched of a job while it is rendered, as its worker writes it down and the gateway hands it out.

{job}/live/facts.json        when each segment begins, and why there is no stream where there is none: `LiveFacts`
           header.mp4        what a player reads first
           00000.json        how a segment's file becomes what it reads next: `StreamSegment`
           in_result.jsonl   the same of the result, once there is one: a line for each segment
           00000.source.jpg  the segment's first frame, as players show it; not of every segment of a long video
           00000.result.jpg
           preview.json      what became of the preview that was asked for last: `PreviewFacts`
           preview.mp4       and preview.source.jpg, preview.result.jpg: its first frame

The packets themselves are not stored again: they lie in the segment's file, and then in the result.
"""

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from worker.contract.job import JobError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LiveFacts(_Frozen):
    """`live/facts.json`."""

    segment_suffix: str = Field(description="Of the segments' files.")
    borders_seconds: tuple[float, ...] = Field(
        description="When each segment begins, from the first frame of the video on, and when the last one ends."
    )
    why_not_streamed: str | None = Field(description="Why browsers play no such segments, and what to do about it.")

    @property
    def segments(self) -> int:
        return len(self.borders_seconds) - 1


class StreamSegment(_Frozen):
    """`head`, and behind it `ranges` of the file that holds the packets."""

    head: Base64Bytes = Field(description="A `moof` box, and the head of the `mdat` box that follows.")
    file_bytes: int = Field(description="The size of the file that this was written about; of another it is not true.")
    ranges: tuple[tuple[int, int], ...] = Field(description="Offset and length of what is inside of `mdat`.")

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(length for _, length in self.ranges)


class PreviewFacts(_Frozen):
    """`live/preview.json`: written last, when everything else of the preview is there."""

    at_seconds: float = Field(
        description="Where it begins, from the first frame of the video on; as asked if it failed."
    )
    frames: int = 0
    sha256: str = Field("", description="Of `preview.mp4`.")
    error: JobError | None = None
