"""Upscale clips by the command and by the service, and let ffprobe compare each result with its source.

    .venv/bin/python benchmarks/clips.py CLIP... --preset aligned --url http://127.0.0.1:8000

Needs curl and ffprobe (Debian: `apt-get install curl ffmpeg`), and for --url a running `vsr serve`. Prints a line per
clip: whether the size doubled, the number and times of the frames and the bytes of the sound are the source's, and
whether the service's result (by curl alone: upload, poll, download) has the very bytes of the command's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", help="videos")
    parser.add_argument("--preset", default="aligned")
    parser.add_argument("--url", help="of a running service; without it only the command is tried")
    arguments = parser.parse_args()

    print(
        "| clip | frames | size | frame times | sound | service | seconds (command, service) |\n" + "| --- " * 7 + "|"
    )
    failures = 0
    for clip in arguments.clips:
        with tempfile.TemporaryDirectory() as folder:
            cells, good = check_clip(clip, Path(folder), arguments.preset, arguments.url)
        print(f"| {clip.name} | " + " | ".join(cells) + " |", flush=True)
        failures += not good
    raise SystemExit(f"{failures} clips differ" if failures else 0)


def check_clip(clip: Path, folder: Path, preset: str, url: str | None) -> tuple[list[str], bool]:
    # The default name: the source's container where it is one of ours, else mkv, as the service chooses too.
    source = folder / clip.name
    source.symlink_to(clip.resolve())
    began = time.monotonic()
    result = Path(run([str(Path(sys.executable).with_name("vsr")), "upscale", str(source), "--preset", preset]).strip())
    command_seconds = time.monotonic() - began

    before, after = probe(source), probe(result)
    checks = {
        "size": after["size"] == [2 * side for side in before["size"]],
        "frame times": times_agree(before, after, result.suffix),
        "sound": after["sound"] == before["sound"],
    }
    cells = [f"{len(before['times'])} = {len(after['times'])}"] + [
        "same" if good else "DIFFERS" for good in checks.values()
    ]
    cells[1] = "x".join(map(str, after["size"])) if checks["size"] else "DIFFERS"
    good = all(checks.values()) and len(before["times"]) == len(after["times"])
    service_seconds = 0.0
    if url:
        began = time.monotonic()
        downloaded = by_curl(source, folder / "downloaded", preset, url)
        service_seconds = time.monotonic() - began
        same = downloaded.read_bytes() == result.read_bytes()
        good = good and same
        cells.append("same bytes" if same else "DIFFERS")
    else:
        cells.append("not tried")
    return [*cells, f"{command_seconds:.0f}, {service_seconds:.0f}"], good


def by_curl(source: Path, target: Path, preset: str, url: str) -> Path:
    job = json.loads(curl("-F", f"file=@{source}", "-F", f"preset={preset}", f"{url}/v1/jobs"))
    while job["status"] in ("queued", "running"):
        time.sleep(0.2)
        job = json.loads(curl(f"{url}/v1/jobs/{job['id']}"))
    if job["status"] != "succeeded":
        raise SystemExit(f"{source.name}: {job['status']}: {job['error']}")
    curl("-o", str(target), f"{url}/v1/jobs/{job['id']}/result")
    return target


def probe(video: Path) -> dict[str, Any]:
    """What ffprobe says: stored size, frame times and the checksums of all sound packets, per stream."""
    streams = json.loads(ffprobe(video, "-show_streams"))["streams"]
    # The stream that is upscaled: the first marked as default, else the first, as in the report.
    pictures = [s for s in streams if s["codec_type"] == "video" and not s["disposition"]["attached_pic"]]
    main = next((s for s in pictures if s["disposition"]["default"]), pictures[0])
    frames = json.loads(ffprobe(video, "-select_streams", str(main["index"]), "-show_frames"))["frames"]
    sound = [s["index"] for s in streams if s["codec_type"] == "audio"]
    packets = [
        json.loads(ffprobe(video, "-select_streams", str(index), "-show_packets", "-show_data_hash", "sha256"))[
            "packets"
        ]
        for index in sound
    ]
    return {
        "size": [main["width"], main["height"]],
        "times": [frame_time(frame, Fraction(main["time_base"])) for frame in frames],
        "sound": [[packet["data_hash"] for packet in stream] for stream in packets],
    }


def frame_time(frame: dict[str, Any], time_base: Fraction) -> Fraction | None:
    """None where ffprobe cannot tell, as for some frames of ASF."""
    stamp = frame.get("best_effort_timestamp")
    return None if stamp is None else stamp * time_base


def times_agree(before: dict[str, Any], after: dict[str, Any], suffix: str) -> bool:
    """Exactly; in Matroska, which counts in milliseconds, to the nearest one."""
    tolerance = Fraction(1, 2000) if suffix in (".mkv", ".webm") else 0
    pairs = zip(before["times"], after["times"], strict=False)
    return all(source is None or abs(ours - source) <= tolerance for source, ours in pairs)


def ffprobe(video: Path, *arguments: str) -> str:
    return run(["ffprobe", "-v", "error", "-of", "json", *arguments, str(video)])


def curl(*arguments: str) -> str:
    return run(["curl", "--silent", "--show-error", "--fail", *arguments])


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
