"""The encoders' own options that a user may set: those that can neither break segments nor open a file.

A list of what is allowed, as encoders have hundreds of options and a stranger's text must never name a file. Values are
checked here too: x264 takes "psy-rd=foo" without a word.
"""

import re
from dataclasses import dataclass

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import VideoCodec

_NUMBER = re.compile(r"-?\d{1,6}(\.\d{1,6})?")


@dataclass(frozen=True)
class Numbers:
    """One number, or up to `most` separated by commas, each between `low` and `high`."""

    low: float
    high: float
    whole: bool = True
    most: int = 1

    def takes(self, value: str) -> bool:
        parts = value.split(",")
        return len(parts) <= self.most and all(
            _NUMBER.fullmatch(part) and self.low <= float(part) <= self.high and not (self.whole and "." in part)
            for part in parts
        )

    def __str__(self) -> str:
        kind = "whole numbers" if self.whole else "numbers"
        more = f", at most {self.most} of them" if self.most > 1 else ""
        return f"{kind} from {self.low:g} to {self.high:g}{more}"


@dataclass(frozen=True)
class Words:
    """One of some words, or up to `most` separated by commas."""

    words: tuple[str, ...]
    most: int = 1

    def takes(self, value: str) -> bool:
        parts = value.split(",")
        return len(parts) <= self.most and all(part in self.words for part in parts)

    def __str__(self) -> str:
        return ", ".join(self.words)


_SWITCH = Numbers(0, 1)

ALLOWED: dict[VideoCodec, dict[str, Numbers | Words]] = {
    VideoCodec.H264: {
        "tune": Words(("film", "animation", "grain", "stillimage", "psnr", "ssim", "fastdecode")),
        "8x8dct": _SWITCH,
        "aq-mode": Numbers(0, 3),
        "aq-strength": Numbers(0, 3, whole=False),
        "b-adapt": Numbers(0, 2),
        "b-bias": Numbers(-100, 100),
        "b-pyramid": Words(("none", "strict", "normal")),
        "bframes": Numbers(0, 16),
        "cabac": _SWITCH,
        "chroma-me": _SWITCH,
        "chroma-qp-offset": Numbers(-12, 12),
        "dct-decimate": _SWITCH,
        "deadzone-inter": Numbers(0, 32),
        "deadzone-intra": Numbers(0, 32),
        "deblock": Numbers(-6, 6, most=2),
        "direct": Words(("none", "spatial", "temporal", "auto")),
        "fast-pskip": _SWITCH,
        "ipratio": Numbers(0.1, 10, whole=False),
        "mbtree": _SWITCH,
        "me": Words(("dia", "hex", "umh", "esa", "tesa")),
        "merange": Numbers(4, 64),
        "mixed-refs": _SWITCH,
        "nr": Numbers(0, 10000),
        "partitions": Words(("none", "all", "p8x8", "p4x4", "b8x8", "i8x8", "i4x4"), most=5),
        "pbratio": Numbers(0.1, 10, whole=False),
        "psy": _SWITCH,
        "psy-rd": Numbers(0, 10, whole=False, most=2),
        "qcomp": Numbers(0, 1, whole=False),
        "rc-lookahead": Numbers(0, 250),
        "ref": Numbers(1, 16),
        "scenecut": Numbers(0, 400),
        "subme": Numbers(0, 11),
        "trellis": Numbers(0, 2),
        "weightb": _SWITCH,
        "weightp": Numbers(0, 2),
    },
    VideoCodec.HEVC: {
        "tune": Words(("psnr", "ssim", "grain", "animation", "fastdecode")),
        "amp": _SWITCH,
        "aq-mode": Numbers(0, 4),
        "aq-strength": Numbers(0, 3, whole=False),
        "b-adapt": Numbers(0, 2),
        "b-intra": _SWITCH,
        "b-pyramid": _SWITCH,
        "bframes": Numbers(0, 16),
        "cbqpoffs": Numbers(-12, 12),
        "crqpoffs": Numbers(-12, 12),
        "cutree": _SWITCH,
        "deblock": Numbers(-6, 6, most=2),
        "early-skip": _SWITCH,
        "ipratio": Numbers(0.1, 10, whole=False),
        "limit-modes": _SWITCH,
        "limit-refs": Numbers(0, 3),
        "limit-sao": _SWITCH,
        "max-merge": Numbers(1, 5),
        "me": Words(("dia", "hex", "umh", "star")),
        "merange": Numbers(4, 256),
        "nr-inter": Numbers(0, 2000),
        "nr-intra": Numbers(0, 2000),
        "pbratio": Numbers(0.1, 10, whole=False),
        "psy-rd": Numbers(0, 5, whole=False),
        "psy-rdoq": Numbers(0, 50, whole=False),
        "qcomp": Numbers(0.5, 1, whole=False),
        "rc-lookahead": Numbers(5, 250),
        "rd": Numbers(1, 6),
        "rdoq-level": Numbers(0, 2),
        "rect": _SWITCH,
        "ref": Numbers(1, 8),
        "rskip": Numbers(0, 2),
        "sao": _SWITCH,
        "scenecut": Numbers(0, 400),
        "selective-sao": Numbers(0, 4),
        "signhide": _SWITCH,
        "strong-intra-smoothing": _SWITCH,
        "subme": Numbers(0, 7),
        "temporal-mvp": _SWITCH,
        "tskip": _SWITCH,
        "weightb": _SWITCH,
        "weightp": _SWITCH,
    },
    VideoCodec.AV1: {
        "tune": Numbers(0, 2),
        "ac-bias": Numbers(0, 8, whole=False),
        "enable-cdef": _SWITCH,
        "enable-dlf": Numbers(0, 2),
        "enable-qm": _SWITCH,
        "enable-restoration": _SWITCH,
        "enable-variance-boost": _SWITCH,
        "film-grain": Numbers(0, 50),
        "film-grain-denoise": _SWITCH,
        "luminance-qp-bias": Numbers(0, 100),
        "qm-max": Numbers(0, 15),
        "qm-min": Numbers(0, 15),
        "qp-scale-compress-strength": Numbers(0, 3, whole=False),
        "scm": Numbers(0, 2),
        "sharpness": Numbers(-7, 7),
        "variance-boost-strength": Numbers(1, 4),
        "variance-octile": Numbers(1, 8),
    },
    VideoCodec.VP9: {
        "tune": Words(("psnr", "ssim")),
        "aq-mode": Numbers(0, 3),
        "arnr-maxframes": Numbers(0, 15),
        "arnr-strength": Numbers(0, 6),
        "enable-tpl": _SWITCH,
        "lag-in-frames": Numbers(0, 25),
        "sharpness": Numbers(0, 7),
        "static-thresh": Numbers(0, 10000),
        "tune-content": Words(("default", "screen", "film")),
    },
    VideoCodec.FFV1: {"coder": _SWITCH, "context": _SWITCH},
    VideoCodec.PRORES: {},
    VideoCodec.PNG: {"pred": Words(("none", "sub", "up", "avg", "paeth", "mixed"))},
}

# Why the options that people know are refused, for x264, x265, SVT-AV1 and libvpx alike.
_REFUSED = {
    "it names a file, which a job never opens": (
        "stats qpfile cqmfile dump-yuv csv csv-log-level analysis-save analysis-load analysis-reuse-file "
        "dhdr10-info dolby-vision-rpu recon lambda-file scaling-list zonefile opencl-clbin stats-file fgs- "
        "table pass-file roi-map-file log-file input output nalu-file film-grain-table passlogfile ambient- "
        "viewing-environment vf video-filter"
    ),
    "segments are encoded one by one, each in itself": (
        "keyint min-keyint keyint-min gop-lookahead open-gop intra-refresh idr-recovery-sei fixed-keyint g "
        "gop gop-size kf-max-dist kf-min-dist irefresh-type enable-fg-overlays enable-overlays sframe-dist "
        "force-key-frames forced-idr"
    ),
    "rate control over the whole file cannot work in segments: use quality or crf": (
        "bitrate b tbr mbr vbv-maxrate vbv-bufsize vbv-init maxrate bufsize minrate pass multi-pass-opt- "
        "analysis rc rc-mode ratetol crf-max crf-min qpmin qpmax qpstep qp-min qp-max min-qp max-qp qmin qmax "
        "strict-cbr undershoot-pct overshoot-pct max-intra-rate slow-firstpass filler nal-hrd hrd frames "
        "total-frames zones"
    ),
    "the result must not depend on the machine": (
        "threads lookahead-threads sliced-threads sync-lookahead asm cpu-independent non-deterministic "
        "deterministic pools numa-pools frame-threads wpp pmode pme slices slice-max-size slice-max-mbs "
        "lookahead-slices opencl opencl-device lp pin ss target-socket row-mt tile-columns tile-rows copy-pic "
        "cpuid frame-parallel"
    ),
    "players and segments need the headers as they are: they are made from the source's facts": (
        "stitchable annexb sps-id repeat-headers aud aud-nalu-type info hash frame-packing interlace "
        "interlaced tff bff pic-struct fake-interlaced level level-idc level-force profile high-tier tier "
        "bluray-compat avcintra-class sar overscan videoformat range fullrange input-csp output-csp output- "
        "depth input-depth colorprim transfer colormatrix chromaloc master-display mastering-display max-cll "
        "cll content-light hdr10 hdr10-opt hdr color-primaries transfer-characteristics matrix-coefficients "
        "color-range chroma-sample-position fps force-cfr vfr-input timebase display-window vui-timing-info "
        "vui-hrd-info alternative-transfer nalu seek"
    ),
    "there is an option for it": "crf qp q lossless cqp preset quality deadline cpu-used auto-alt-ref speed",
}


def parsed_encoder_options(codec: VideoCodec, text: str) -> dict[str, str]:
    """Return the options of "tune=film:aq-mode=3" by name, each allowed and in range.

    Raises `JobFailureError(INVALID_OPTION)` that says why one is not.
    """
    options: dict[str, str] = {}
    for item in filter(None, text.split(":")):
        name, _, value = item.partition("=")
        options[name] = value
        allowed = ALLOWED[codec].get(name)
        if allowed is None:
            raise _invalid(f"encoder option {name} is refused: {_why_refused(codec, name)}")
        if not allowed.takes(value):
            raise _invalid(f"encoder option {name} of {codec} takes {allowed}, not {value}")
    return options


def _why_refused(codec: VideoCodec, name: str) -> str:
    bare = name.removeprefix("no-")
    why = next((reason for reason, names in _REFUSED.items() if bare in names.split()), None)
    if why is not None:
        return why
    known = ", ".join(ALLOWED[codec]) or "none"
    return f"it is not known to be harmless to {codec} in segments (known are: {known})"


def _invalid(message: str) -> JobFailureError:
    return JobFailureError(FailureCode.INVALID_OPTION, message)
