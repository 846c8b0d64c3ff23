"""What is asked of every result, whatever the source: frames, times, streams, words, picture, and an honest report."""

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.fidelity.row import Row, Upscaled
from tests.fidelity.witness import Pixels, Stream, Witness, decode, packet_sha256, stream_sha256

A_MILLISECOND = Fraction(1, 1000)
_KEPT_FACTS = (
    *("pix_fmt", "color_range", "color_space", "color_primaries", "color_transfer", "chroma_location"),
    *("sample_aspect_ratio", "field_order"),
)
_MEANS_THE_SAME = {
    "chroma_location": {None: "left", "unspecified": "left"},  # as H.264 has it
    "sample_aspect_ratio": {"0:1": "1:1", None: "1:1"},
    "field_order": {None: "progressive", "unknown": "progressive"},
}
_KEPT_SIDE_DATA = ("Display Matrix", "Mastering display metadata", "Content light level metadata")
# Of the file or the encoder, not of the film.
_TECHNICAL_TAGS = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "encoder_settings", "encoding_tool"),
    *("duration", "bps", "number_of_frames", "number_of_bytes", "handler_name"),
}


def assert_kept(row: Row, upscaled: Upscaled) -> None:
    """The whole guarantee, less what the row says that its formats cannot keep."""
    assert_files_agree(row, upscaled.source, upscaled.result)
    assert_report_agrees(row, upscaled)


def assert_files_agree(row: Row, source: Witness, result: Witness) -> None:
    assert_same_frame_times(source, result)
    assert_decoding_order(result)
    assert_same_facts(row, source.video, result.video)
    assert_same_streams(row, source, result)
    assert_same_tags(row, source, result)
    assert_same_chapters(source, result)
    if row.compares_picture:
        assert_picture_doubled(row, source, result)


# --- time ------------------------------------------------------------------------------------------------------------


def assert_same_frame_times(source: Witness, result: Witness) -> None:
    assert len(result.video.frames) == len(source.video.frames)
    tolerance = A_MILLISECOND / 2 if is_matroska(result) else 0
    off = time_differences(source, result)
    assert max(map(abs, off)) <= tolerance, f"off by {[float(seconds) for seconds in off]}"


def time_differences(source: Witness, result: Witness) -> list[Fraction]:
    """By how much every frame comes late. Where ffprobe knows no time for the last one, it shall only be the last."""
    shift = shift_of(source, result)
    times = zip(source.video.frame_times, result.video.frame_times, strict=True)
    off = [after - before - shift for before, after in times]
    if "best_effort_timestamp" not in source.video.frames[-1]:
        assert result.video.frame_times[-1] > result.video.frame_times[-2]
        off.pop()
    return off


def shift_of(source: Witness, result: Witness) -> Fraction:
    """No file of ours has times before zero: where the source has, all streams alike come later."""
    earliest = min(
        packet.pts for stream in source.streams for packet in stream.visible_packets if packet.pts is not None
    )
    if earliest >= 0:
        return Fraction(0)
    shift = result.video.frame_times[0] - source.video.frame_times[0]
    assert 0 <= shift <= -earliest + Fraction(1, 10)
    return shift


def is_matroska(witness: Witness) -> bool:
    return "matroska" in str(witness.format["format_name"])


def assert_decoding_order(result: Witness) -> None:
    """Packets lie in the order of decoding, each before it is shown; every one is used, and decodes without a word."""
    assert result.complaints == ""
    for stream in result.of_kind("video", "audio"):
        dts = [packet.dts for packet in stream.packets if packet.dts is not None]
        assert dts == sorted(set(dts)), f"decoding times of stream {stream.index} do not rise"
        assert all(p.dts <= p.pts for p in stream.packets if p.dts is not None and p.pts is not None)
    assert len(result.video.packets) == len(result.video.frames)


# --- streams and words -----------------------------------------------------------------------------------------------


def pairs_of_streams(row: Row, source: Witness, result: Witness) -> list[tuple[Stream, Stream]]:
    """Every stream that is copied, with its copy: muxers put pictures and fonts last, the rest in order."""
    pairs: list[tuple[Stream, Stream]] = []
    for kind in ("video", "audio", "subtitle", "data", "picture", "attachment"):
        rewritten = [index for index, outcome in row.outcomes.items() if outcome != "converted"]
        before = [stream for stream in source.of_kind(kind) if stream.index not in rewritten]
        after = result.of_kind(kind)
        before, after = (
            [stream for stream in streams if stream not in (source.video, result.video)] for streams in (before, after)
        )
        # Behind ours, a muxer of mp4 adds tracks of its own, for chapters and timecode.
        after = after[: len(before)] if kind == "data" else after
        assert len(after) == len(before), f"{len(before)} {kind} streams became {len(after)}"
        pairs += zip(before, after, strict=True)
    return pairs


def assert_same_streams(row: Row, source: Witness, result: Witness) -> None:
    for before, after in pairs_of_streams(row, source, result):
        if row.outcomes.get(before.index) == "converted":
            continue
        assert after.facts.get("codec_name") == before.facts.get("codec_name")
        if before.kind == "attachment":
            assert after.facts["extradata_hash"] == before.facts["extradata_hash"]
            assert (after.tags["filename"], after.tags["mimetype"]) == (
                before.tags["filename"],
                before.tags["mimetype"],
            )
            continue
        there, here = [packet.sha256 for packet in after.visible_packets], payloads(source, before)
        assert there == here, f"stream {before.index}"
        if before.kind != "picture":
            assert_same_times_against_the_video(before, after, source, result)
            assert len(after.packets) == len(before.packets) or is_matroska(result)


def payloads(witness: Witness, stream: Stream) -> list[str]:
    """The digests of what may be seen and heard; of AAC in broadcasts without the headers that are of the broadcast."""
    if witness.format["format_name"] == "mpegts" and stream.facts["codec_name"] == "aac":
        return packet_sha256(witness.path, stream, "aac_adtstoasc")
    return [packet.sha256 for packet in stream.visible_packets]


def assert_same_times_against_the_video(before: Stream, after: Stream, source: Witness, result: Witness) -> None:
    """At start, middle, end and everywhere between, within a millisecond; subtitles end when they did, too."""
    zero_before, zero_after = source.video.frame_times[0], result.video.frame_times[0]
    for number, (then, now) in enumerate(zip(before.visible_packets, after.visible_packets, strict=True)):
        if then.pts is None or now.pts is None:
            assert then.pts == now.pts
            continue
        drift = (now.pts - zero_after) - (then.pts - zero_before)
        assert abs(drift) <= A_MILLISECOND, f"packet {number} of stream {before.index} is off by {float(drift)} s"
        if before.kind == "subtitle":
            assert abs(now.duration - then.duration) <= A_MILLISECOND


def assert_same_tags(row: Row, source: Witness, result: Witness) -> None:
    """Everything said about the film and its streams is said again, and nothing else."""
    assert film_tags(result.tags) == film_tags(source.tags)
    for before, after in [(source.video, result.video), *pairs_of_streams(row, source, result)]:
        if before.kind in ("picture", "attachment"):
            continue
        assert film_tags(after.tags) == film_tags(before.tags), f"stream {before.index}"
        nobody_is_default = not any("default" in stream.dispositions for stream in source.of_kind(before.kind))
        # In mp4 that would mean that nothing is to be shown: its muxers then enable the first.
        may_become_default = nobody_is_default and "mp4" in str(result.format["format_name"])
        assert after.dispositions - ({"default"} if may_become_default else set()) == before.dispositions


def film_tags(tags: dict[str, str]) -> dict[str, str]:
    """Without what is technical, and with mp4's way of saying that a language is not known taken for not saying it."""
    lower = {key.lower(): value for key, value in tags.items()}
    return {
        key: value
        for key, value in lower.items()
        if key not in _TECHNICAL_TAGS and not key.startswith("_statistics") and (key, value) != ("language", "und")
    }


def assert_same_chapters(source: Witness, result: Witness) -> None:
    def told(witness: Witness) -> list[tuple[Fraction, Fraction, str]]:
        shift = shift_of(source, result) if witness is result else Fraction(0)
        return [
            (
                round((int(chapter["start"]) * Fraction(chapter["time_base"]) - shift) / A_MILLISECOND),
                round((int(chapter["end"]) * Fraction(chapter["time_base"]) - shift) / A_MILLISECOND),
                chapter.get("tags", {}).get("title", ""),
            )
            for chapter in witness.chapters
        ]

    assert told(result) == told(source)


# --- the picture -----------------------------------------------------------------------------------------------------


def assert_same_facts(row: Row, before: Stream, after: Stream) -> None:
    assert (after.facts["width"], after.facts["height"]) == (2 * before.facts["width"], 2 * before.facts["height"])
    assert facts_of(after) == expected_facts(row, before, facts_of(after))


def expected_facts(row: Row, before: Stream, found: dict[str, Any]) -> dict[str, Any]:
    """What is known of the source, or what the row says that becomes of it.

    A codec may say "limited range" where the source said nothing, as that is what saying nothing means.
    """
    expected = facts_of(before)
    if expected["color_range"] is None and found["color_range"] == "tv" and found["pix_fmt"].startswith("yuv"):
        expected["color_range"] = "tv"
    return expected | dict(row.changes)


def facts_of(stream: Stream) -> dict[str, Any]:
    facts = {name: stream.facts.get(name) for name in _KEPT_FACTS}
    facts = {name: _MEANS_THE_SAME.get(name, {}).get(value, value) for name, value in facts.items()}
    if facts["pix_fmt"].startswith("yuvj"):  # yuv of full range by its old name
        facts |= {"pix_fmt": facts["pix_fmt"].replace("yuvj", "yuv"), "color_range": "pc"}
    for name in _KEPT_SIDE_DATA:
        facts[name] = {key: in_lowest_terms(value) for key, value in (stream.side_data(name) or {}).items()}
    return facts


def in_lowest_terms(value: object) -> object:
    """34000/50000 as 17/25: containers write the same number in their own ways."""
    return str(Fraction(value)) if isinstance(value, str) and "/" in value else value


def assert_picture_doubled(row: Row, source: Witness, result: Witness) -> None:
    """The stand-in repeats pixels: wherever colours are flat, the result has the source's, at twice the size."""
    if row.compare_as or plain_format(source) != plain_format(result):
        as_what = row.compare_as
        assert as_what, f"{plain_format(source)} became {plain_format(result)}"
        before, after = decode(source.path, source.video, as_what), decode(result.path, result.video, as_what)
        assert len(result.pixels) == len(after)  # the whole result decodes without a word as it is, too
    else:
        before, after = source.pixels, result.pixels
    assert_doubled(before, after, row.within_levels, edge_px=source.pixels.edge_px)


def plain_format(witness: Witness) -> str:
    """Without the old name of full range; with the transparency that Debian's ffprobe does not see in VP8 and VP9."""
    name = str(witness.video.facts["pix_fmt"]).replace("yuvj", "yuv")
    return name.replace("yuv", "yuva") if film_tags(witness.video.tags).get("alpha_mode") == "1" else name


def assert_doubled(
    before: Pixels,
    after: Pixels,
    within_levels: float,
    numbers: Iterable[int] | None = None,
    *,
    only_where_seen: bool = False,
    flat_share: float = 0.05,
    edge_px: int = 5,
) -> None:
    """Compare flat places of all frames, or of some. `only_where_seen`: the last channel is transparency."""
    assert len(after) == len(before)
    coarser = min(before.depth, after.depth)
    for number in numbers or range(len(before)):
        channels_before = [channel / 2.0 ** (before.depth - coarser) for channel in before[number]]
        channels_after = [channel / 2.0 ** (after.depth - coarser) for channel in after[number]]
        assert len(channels_after) == len(channels_before)
        level = 2.0 ** (coarser - 8)
        is_flat = np.logical_and.reduce([flat_places(channel, 2 * level, edge_px) for channel in channels_before])
        if only_where_seen:
            is_flat &= channels_before[-1] > 0
        assert is_flat.mean() >= flat_share, f"frame {number} has no flat places to compare"
        for place, (one, two) in enumerate(zip(channels_before, channels_after, strict=True)):
            off = np.abs(two - one.repeat(2, axis=0).repeat(2, axis=1))[is_flat.repeat(2, axis=0).repeat(2, axis=1)]
            assert off.max() <= within_levels, f"channel {place} of frame {number} is off by {off.max()} levels"


def flat_places(channel: npt.NDArray[np.float64], step: float, edge_px: int) -> npt.NDArray[np.bool_]:
    """Where nothing changes by more than `step` for `edge_px` around; the picture goes on flat beyond its edges."""
    padded = np.pad(channel, edge_px, mode="edge")
    side = 2 * edge_px + 1
    low = high = padded
    for axis in (0, 1):
        low = np.lib.stride_tricks.sliding_window_view(low, side, axis=axis).min(-1)
        high = np.lib.stride_tricks.sliding_window_view(high, side, axis=axis).max(-1)
    return (high - low) <= step


# --- the report ------------------------------------------------------------------------------------------------------


def assert_report_agrees(row: Row, upscaled: Upscaled) -> None:
    """What the product says about both files is what the witness sees."""
    source, result, report = upscaled.source, upscaled.result, upscaled.report
    for told, witness in ((report["source"], source), (report["result"], result)):
        facts = witness.video.facts
        content = witness.path.read_bytes()
        assert (told["sha256"], told["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        assert told["frames"] == len(witness.video.frames)
        assert (told["width"], told["height"]) == (facts["width"], facts["height"])
        assert told["chapters"] == len(witness.chapters)
        assert told["codec"] == facts["codec_name"]
        assert told["pixel_format"].replace("yuvj", "yuv") == plain_format(witness)
        assert told["sample_aspect_ratio"] in (None, facts.get("sample_aspect_ratio", "1:1").replace(":", "/"))
        assert told["colour_range"] in ranges_meant_by(witness)
        assert told["colour_matrix"] in matrices_meant_by(witness, row)
        assert told["colour_primaries"] == facts.get("color_primaries")
        assert told["colour_transfer"] == facts.get("color_transfer")
    assert (report["frames"]["source"], report["frames"]["result"]) == (len(source.video.frames),) * 2
    shift = shift_of(source, result)
    assert report["timestamps"]["exact"] == (not any(time_differences(source, result)) and not shift)
    assert abs(report["timestamps"]["shift_seconds"] - shift) < A_MILLISECOND
    assert_report_names_streams(row, upscaled)


def ranges_meant_by(witness: Witness) -> set[str | None]:
    """Decoders may know what silence means: the full range for RGB, the limited one for YUV."""
    told = witness.video.facts.get("color_range")
    if told is None:
        return {None, "full" if is_rgb(witness) else "limited"}
    return {{"tv": "limited", "pc": "full"}[told]}


def matrices_meant_by(witness: Witness, row: Row) -> set[str | None]:
    """As for ranges; VP8 has its matrix by its specification, which the row then names."""
    told = witness.video.facts.get("color_space")
    if told is None:
        return {None, "rgb" if is_rgb(witness) else row.changes.get("color_space")}
    return {{"gbr": "rgb"}.get(told, told)}


def is_rgb(witness: Witness) -> bool:
    return any(name in plain_format(witness) for name in ("rgb", "bgr", "gbr", "pal8"))


def assert_report_names_streams(row: Row, upscaled: Upscaled) -> None:
    source, result = upscaled.source, upscaled.result
    told = {stream["index"]: stream for stream in upscaled.report["streams"]}
    outcomes = {stream.index: row.outcomes.get(stream.index, "copied") for stream in source.streams}
    outcomes[source.video.index] = "upscaled"
    assert {index: stream["outcome"] for index, stream in told.items()} == outcomes
    for before, after in pairs_of_streams(row, source, result):
        if outcomes[before.index] == "copied" and before.kind in ("video", "audio", "subtitle"):
            in_result = told[before.index]["result"]
            assert (in_result["index"], in_result["packets"]) == (after.index, len(after.packets))
            assert in_result["sha256"] == stream_sha256(result.path, after)
