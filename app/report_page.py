"""A job's report for people: two tables, side by side what was and what is, and a few lines."""

from app.terminal import print_result, print_table
from worker.contract.report import QualityReport, Report, SeamReport, StreamFacts, StreamReport

_NOTHING_LOST_DB = 100.0


def print_report(report: Report) -> None:
    """Print it to standard output."""
    print_result(summary_of(report))
    print_result("")
    properties = [
        [line.name.replace("_", " "), line.source or "-", line.result or "-", line.outcome, line.why or ""]
        for line in report.properties
        if line.source or line.result
    ]
    print_table(["property", "source", "result", "", "why"], properties)
    print_result("")
    streams = [
        [
            f"{stream.index} {stream.type}",
            _stream_words(stream),
            _stream_words(stream.result) if stream.result else "-",
            stream.outcome,
            stream.why or _same_payload(stream),
        ]
        for stream in report.streams
    ]
    print_table(["stream", "source", "result", "", "why"], streams)
    print_result("")
    for title, lines in (
        ("lost, as agreed", report.losses),
        ("without a place in the container", report.lost_in_container),
        ("concealed", [f"frame {place.frame} ({place.seconds:.3f} s)" for place in report.frames.concealed]),
        ("scene cuts", [f"frame {place.frame} ({place.seconds:.3f} s)" for place in report.scene_cuts]),
        ("notes", report.notes),
    ):
        if lines:
            print_result(f"{title}: {'; '.join(lines)}")
    print_result(f"quality: {quality_words(report.quality)}")
    if report.tile_reuse:
        tiles = report.tile_reuse.computed + report.tile_reuse.reused
        print_result(f"tiles: {report.tile_reuse.reused / tiles:.1%} of {tiles} reused from the frame before")
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.stage_seconds.items())
    rate = f"{report.frames_per_second:.2f} frames/s: " if report.frames_per_second else ""
    busy = f"; the networks were busy {report.device_busy:.0%} of the time" if report.device_busy is not None else ""
    print_result(f"speed: {rate}{stages}{busy}")


def summary_of(report: Report) -> str:
    """Frames, times, sound: what has to be right."""
    moved = [abs(offset.result_seconds - offset.source_seconds) for offset in report.sound_offsets]
    sound = f"; sound against picture within {max(moved) * 1000:.3f} ms" if moved else ""
    return f"{report.frames.source} frames in, {report.frames.result} out; times {report.timestamps.words}{sound}"


def quality_words(quality: QualityReport) -> str:
    if quality.psnr_db is None or quality.worst_psnr_db is None or quality.worst_frame is None:
        return "not measured"
    words = [
        f"brought back to the source's size, {quality.frames_compared} frames are {quality.psnr_db:.1f} dB from it "
        f"(worst {quality.worst_psnr_db:.1f} dB, frame {quality.worst_frame.frame})"
    ]
    if quality.encoding_psnr_db is not None:
        words.append(
            "the encoder lost nothing"
            if quality.encoding_psnr_db == _NOTHING_LOST_DB
            else f"the encoder alone kept {quality.encoding_psnr_db:.1f} dB at least"
        )
    for name, seams in (("tiles", quality.tile_borders), ("segments", quality.segment_borders)):
        words += [_seam_words(name, seams)] if seams else []
    if quality.segments_without_figures:
        words.append(f"{quality.segments_without_figures} segments not measured")
    return "; ".join(words)


def _seam_words(name: str, seams: SeamReport) -> str:
    return f"seams between {name} {seams.ratio:.2f} times as strong as elsewhere ({seams.seams} looked at)"


def _stream_words(stream: StreamFacts) -> str:
    words = [stream.codec or "unknown codec", stream.language, stream.title, *stream.disposition]
    return " ".join(word for word in words if word)


def _same_payload(stream: StreamReport) -> str:
    if stream.outcome != "copied" or stream.packets is None:
        return ""
    return f"{stream.packets} packets, the same bytes" if stream.packets else "the same bytes"
