"""The named ways in which a job or a command can fail: one vocabulary for the API, the job record and the CLI."""

from enum import StrEnum


class FailureCode(StrEnum):
    """Stable codes: clients switch on them, dashboards count by them. Add, never rename."""

    # The source
    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    PLAYLIST_REFUSED = "playlist_refused"
    UNSUPPORTED_CODEC = "unsupported_codec"
    UNSUPPORTED_SOURCE = "unsupported_source"
    CORRUPT_FRAME = "corrupt_frame"
    BAD_TIMESTAMPS = "bad_timestamps"
    LIMIT_EXCEEDED = "limit_exceeded"
    SOURCE_REFUSED = "source_refused"
    SOURCE_UNREACHABLE = "source_unreachable"
    SOURCE_TOO_DEMANDING = "source_too_demanding"
    DECODER_CRASHED = "decoder_crashed"
    # What was asked for
    UNSUPPORTED_OUTPUT = "unsupported_output"
    WOULD_LOSE = "would_lose"
    OUTPUT_EXISTS = "output_exists"
    INVALID_OPTION = "invalid_option"
    UNKNOWN_PRESET = "unknown_preset"
    WEIGHTS_MISSING = "weights_missing"
    WEIGHTS_DAMAGED = "weights_damaged"
    DEVICE_UNAVAILABLE = "device_unavailable"
    # The house
    OUT_OF_DISK = "out_of_disk"
    OUT_OF_MEMORY = "out_of_memory"
    VERIFICATION_FAILED = "verification_failed"
    WORKER_LOST = "worker_lost"
    CAGE_UNAVAILABLE = "cage_unavailable"
    INTERNAL = "internal"


class JobFailureError(Exception):
    """An expected failure: one line for the user that names the problem and the fix. Anything else raised is a bug."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
