"""The picture of the finished file, as read back from it, against the one that the plan promised."""

from fractions import Fraction

from av.video.format import VideoFormat

from worker.video.values import ContentLight, MasteringDisplay, Picture

_FULL_RANGE = 2
_UNKNOWN = 2
_IDENTITY = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
_MATRIX_ROUNDING = 8  # of 65536: Matroska holds angles, not matrices
_USUAL_CHROMA_LOCATIONS = ("unspecified", "left")
_CHROMATICITY_ROUNDING = Fraction(1, 10_000)
_LUMINANCE_ROUNDING = Fraction(1, 1000)  # of the value itself, and at least a thousandth of a candela


def check_picture(found: Picture, promised: Picture) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is wrong with the picture, and what the container had no place for, in words.

    Wrong is whatever would be shown otherwise than promised: such a file is no result.
    """
    wrong = [
        f"{what} {_said(there)} instead of {_said(wanted)}"
        for what, there, wanted in (
            ("its size is", f"{found.width}x{found.height}", f"{promised.width}x{promised.height}"),
            ("its chroma has the layout", _chroma_layout(found, promised), _chroma_layout(promised)),
            ("its transparency is", found.has_alpha, promised.has_alpha),
            ("its fields are", found.field_order, promised.field_order),
            ("its full range is", _is_full_range(found), _is_full_range(promised)),
            ("its matrix is", found.colour.conversion, promised.colour.conversion),
            ("its clean aperture is", found.crop, promised.crop),
        )
        if there != wanted
    ]
    if found.bit_depth < promised.bit_depth:
        wrong.append(f"it has {found.bit_depth} bits instead of {promised.bit_depth}")
    for what, code, wanted_code in (
        ("primaries", found.colour.primaries, promised.colour.primaries),
        ("transfer", found.colour.transfer, promised.colour.transfer),
    ):
        if wanted_code != _UNKNOWN and code != wanted_code:
            wrong.append(f"the {what} are tagged {code} instead of {wanted_code}")
    if not _same_matrix(found.display_matrix, promised.display_matrix):
        wrong.append(f"its rotation is {found.display_matrix} instead of {promised.display_matrix}")
    if not _same_mastering(found.mastering_display, promised.mastering_display):
        wrong.append(f"the mastering display is {found.mastering_display} instead of {promised.mastering_display}")
    if not _same_light(found.content_light, promised.content_light):
        wrong.append(f"the content light is {found.content_light} instead of {promised.content_light}")
    return tuple(wrong), tuple(_lost(found, promised))


def is_rgb(picture: Picture) -> bool:
    """Whether its numbers are red, green and blue, or stand for such in a palette."""
    pixel_format = VideoFormat(picture.pixel_format, 2, 2)
    return pixel_format.is_rgb or pixel_format.has_palette


def _lost(found: Picture, promised: Picture) -> list[str]:
    lost = []
    square = Fraction(1)
    if (found.sample_aspect_ratio or square) != (promised.sample_aspect_ratio or square):
        becomes = f"become {found.sample_aspect_ratio}" if found.sample_aspect_ratio else "become square"
        lost.append(f"the pixels' aspect ratio {promised.sample_aspect_ratio} cannot be stored: they {becomes}")
    there, wanted = found.colour.chroma_location, promised.colour.chroma_location
    if there != wanted and not (there in _USUAL_CHROMA_LOCATIONS and wanted in _USUAL_CHROMA_LOCATIONS):
        lost.append(f"the place of chroma samples, {wanted}, cannot be stored")
    return lost


def _chroma_layout(picture: Picture, promised: Picture | None = None) -> str:
    """FFmpeg's decoder of H.264 shows grey of 8 bits as 4:2:0 without colour: both are the same."""
    if promised is not None and _chroma_layout(promised) == "grey" and _chroma_layout(picture) == "4:2:0":
        return "grey"
    pixel_format = VideoFormat(picture.pixel_format, 2, 2)
    if pixel_format.is_rgb:
        return "RGB"
    colours = sum(not component.is_alpha for component in pixel_format.components)
    if colours == 1:
        return "grey"
    return {(1, 1): "4:2:0", (1, 2): "4:2:2", (2, 2): "4:4:4"}.get(
        (pixel_format.chroma_width(2), pixel_format.chroma_height(2)), picture.pixel_format
    )


def _is_full_range(picture: Picture) -> bool:
    return picture.colour.range == _FULL_RANGE or is_rgb(picture)


def _same_matrix(found: tuple[int, ...] | None, promised: tuple[int, ...] | None) -> bool:
    pairs = zip(found or _IDENTITY, promised or _IDENTITY, strict=True)
    return all(abs(there - wanted) <= _MATRIX_ROUNDING for there, wanted in pairs)


def _same_mastering(found: MasteringDisplay | None, promised: MasteringDisplay | None) -> bool:
    """Codecs hold these in units of their own."""
    if found is None or promised is None:
        return found == promised
    places = [(found.white_point, promised.white_point)]
    places += list(zip(found.primaries or (None,) * 3, promised.primaries or (None,) * 3, strict=True))
    for there, wanted in places:
        if there is None or wanted is None:
            if there != wanted:
                return False
        elif any(abs(a - b) > _CHROMATICITY_ROUNDING for a, b in zip(there, wanted, strict=True)):
            return False
    return all(
        there == wanted
        if there is None or wanted is None
        else abs(there - wanted) <= max(_LUMINANCE_ROUNDING, _LUMINANCE_ROUNDING * wanted)
        for there, wanted in (
            (found.min_luminance, promised.min_luminance),
            (found.max_luminance, promised.max_luminance),
        )
    )


def _same_light(found: ContentLight | None, promised: ContentLight | None) -> bool:
    return found == promised


def _said(value: object) -> str:
    return "none" if value is None else str(value)
