"""`report.json`: what became of everything in the source, as found by reading the finished file back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PropertyOutcome = Literal["kept", "upscaled", "converted", "dropped"]
StreamOutcome = Literal["upscaled", "copied", "converted", "rewritten", "dropped"]

# The container stands in the result's name; the others are ways of counting, and the frames' times say what counts.
_CHOSEN_OR_COUNTED = ("container", "time_base", "frame_rate", "duration_seconds")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFacts(_Frozen):
    """One side of the comparison. Colours are FFmpeg's names of ITU-T H.273; what a file does not say is null."""

    container: str
    size_bytes: int
    sha256: str
    duration_seconds: float = Field(description="Of the picture: from its first frame to the end of its last.")
    frames: int
    frame_rate: str = Field(description='On average, as a fraction: "30000/1001".')
    time_base: str = Field(description="The unit of all frame times, in seconds, as a fraction.")
    codec: str
    width: int = Field(description="Stored width in pixels, before any display rotation.")
    height: int
    pixel_format: str
    bit_depth: int
    transparency: bool
    sample_aspect_ratio: str | None = Field(description='Width to height of a pixel, as "4/3".')
    clean_aperture: str | None = Field(description='The part to be seen, as "720x480+8+0": size, left and top edge.')
    rotation: str | None = Field(
        description='How players turn or mirror the picture, in words: "90 degrees clockwise".'
    )
    display_matrix: tuple[int, ...] | None
    field_order: str
    colour_range: str | None
    colour_matrix: str | None
    colour_primaries: str | None
    colour_transfer: str | None
    chroma_location: str | None
    mastering_display: str | None = Field(description="SMPTE ST 2086, in words.")
    content_light: str | None = Field(description="CTA-861.3, in words.")
    chapters: int


class PropertyReport(_Frozen):
    """One property of the file or its picture, side by side."""

    name: str = Field(description="Stable: a field of `source` and `result`, or metadata.")
    source: str | None
    result: str | None
    outcome: PropertyOutcome
    why: str | None = None


class StreamFacts(_Frozen):
    """One stream, in the source or in the result."""

    index: int
    codec: str | None
    language: str | None = None
    title: str | None = None
    disposition: tuple[str, ...] = ()
    packets: int | None = Field(None, description="Null where nobody read them, as of a dropped stream.")
    sha256: str | None = Field(None, description="Of all payloads in the order of the file.")
    start_seconds: float | None = None
    end_seconds: float | None = Field(None, description="When its last packet begins.")


class StreamReport(StreamFacts):
    """What became of one stream of the source."""

    type: str = Field(description="video, audio, subtitle, data or attachment")
    outcome: StreamOutcome
    why: str | None = None
    result: StreamFacts | None = Field(None, description="The same stream in the result; null for one that is dropped.")


class FramePlace(_Frozen):
    frame: int
    seconds: float


class FrameReport(_Frozen):
    source: int
    result: int = Field(description="As many as in the source, but for what was kept of a canceled job.")
    concealed: tuple[FramePlace, ...] = Field((), description="Frames that could not be decoded; see `on_error`.")


class TimestampReport(_Frozen):
    exact: bool = Field(description="Every frame is shown at the very time of the source.")
    largest_rounding_seconds: float = Field(description="To the container's clock.")
    shift_seconds: float = Field(description="By which all streams alike come later.")
    words: str


class SoundOffset(_Frozen):
    """How far sound and picture are apart at one place: the time of a packet of sound less that of a frame."""

    stream: int = Field(description="Of the source.")
    at: Literal["start", "middle", "end"]
    source_seconds: float
    result_seconds: float


class SeamReport(_Frozen):
    """How much changes at seams, and how much elsewhere, in grey levels of 8 bits. A ratio of 1: no seam to be seen."""

    seams: int = Field(description="How many were looked at.")
    at_seams: float
    elsewhere: float
    ratio: float


class QualityReport(_Frozen):
    """The finished frames, decoded again, against the source: a check that nothing went wrong, no score of beauty.

    The result is brought to the source's size by averaging blocks of pixels. PSNR is that of RGB, in decibels; equal
    frames count as 100.
    """

    frames_compared: int
    psnr_db: float | None = Field(description="Mean over the compared frames; null where none was.")
    worst_psnr_db: float | None
    worst_frame: FramePlace | None
    encoding_psnr_db: float | None = Field(
        None,
        description="What the encoder alone lost: the worst of a few frames against what it was given. 100: nothing, "
        "which a lossless result has to reach.",
    )
    tile_borders: SeamReport | None = Field(
        description="By how much the difference between result and source changes across the borders of tiles, against "
        "other columns and rows. Null: no tiles."
    )
    segment_borders: SeamReport | None = Field(
        description="By how much the difference between result and source changes from the last frame of a segment to "
        "the first of the next, against other pairs of frames. Null: no border, or at scene cuts only."
    )
    segments_without_figures: int = Field(0, description="Segments of which nothing is known.")


class RenderingReport(_Frozen):
    """How the frames went through the networks."""

    batch_frames: int = Field(description="At a time.")
    tile_px: int | None = Field(description="Side of the tiles, in pixels of the source; null: whole frames.")
    backoffs: int = Field(description="How often memory was too small, and smaller batches or tiles were taken.")


class TileReuseReport(_Frozen):
    """How many tiles were computed, and how many taken from the frame before, as their input was unchanged."""

    computed: int
    reused: int


class Report(_Frozen):
    """What was kept, what was changed and why, and what the checks of the finished file found."""

    version: Literal[2] = 2
    source: FileFacts
    result: FileFacts
    properties: tuple[PropertyReport, ...]
    streams: tuple[StreamReport, ...] = Field(description="Every stream of the source.")
    frames: FrameReport
    timestamps: TimestampReport
    sound_offsets: tuple[SoundOffset, ...]
    scene_cuts: tuple[FramePlace, ...] = Field(description="Frames that begin another shot.")
    losses: tuple[str, ...] = Field(description="What the result lacks, with the user's consent.")
    lost_in_container: tuple[str, ...] = Field(
        (), description="What the container had no place for, as reading the finished file back has shown."
    )
    notes: tuple[str, ...] = Field(description="What else a reader should know.")
    quality: QualityReport
    rendering: RenderingReport | None = None
    tile_reuse: TileReuseReport | None = Field(None, description="Null: the job did not ask for reuse.")
    stage_seconds: dict[str, float] = Field(
        description="Spent in plan, decode, infer (the networks), wait (the networks had nothing to do), encode, check "
        "(the quality) and assemble, over all segments. Decode, encode and check go on beside infer and wait, which "
        "together are the time that the segments took."
    )
    device_busy: float | None = Field(
        None, description="The share of the segments' time that was spent in the networks: infer / (infer + wait)."
    )
    frames_per_second: float | None = Field(
        description="Over plan, infer, wait and assemble, as if one worker did everything."
    )
    network: str | None = Field(None, description="Names the pipeline, the weights and what they ran on.")
    tag: str = Field(description="The mark in the file that stands for its source, options and weights.")

    @property
    def changes(self) -> tuple[str, ...]:
        """What was not simply kept, in a few words each; nothing where everything was."""
        properties = [
            f"{line.name.replace('_', ' ')} {line.source or 'none'} -> {line.result or 'none'}"
            for line in self.properties
            if line.outcome in ("converted", "dropped") and line.name not in _CHOSEN_OR_COUNTED
        ]
        streams = [
            f"{stream.type} stream {stream.index} ({stream.codec or 'of unknown codec'}) {stream.outcome}"
            for stream in self.streams
            if stream.outcome in ("converted", "dropped")
        ]
        times = [] if self.timestamps.exact else [f"frame times {self.timestamps.words}"]
        count = len(self.frames.concealed)
        concealed = [f"{count} frame{'s' if count > 1 else ''} concealed"] if count else []
        return (*properties, *streams, *times, *concealed, *self.lost_in_container)
