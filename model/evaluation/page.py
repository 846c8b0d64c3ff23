"""The page of `vsr evaluate --out`: pictures side by side, for eyes. Plain HTML and PNG files; nothing is loaded.

Frames are chosen by the scores, in each condition and for each U-Net: where it gains most over HAT alone, where it
gains least or loses, and a typical one. Of each: the whole frame, the part where the two differ most, and the errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Dataset, SequenceEntry
from model.evaluation.contenders import BICUBIC, NEAREST, TRUTH, Contender, Method, hat_methods, outputs, two_steps
from model.evaluation.report import Report, Table
from model.evaluation.scores import BORDER_PX, centers_of, entries_of, in_eight_bits, triplets
from model.metrics import luma, psnr_y

# The side of the part that is shown enlarged, in high-resolution px.
CROP_PX = 48

# Whole frames larger than this are shown by their middle: the page is to be looked at, not to be downloaded.
PICTURE_PX = 480

# Errors of luma are shown so many times brighter.
ERROR_GAIN = 8

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fcfcfd; --faint: #6b6f76; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ec; --paper: #16171a; --faint: #9aa0a8; --line: #34373d; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 100rem; font: 15px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1, h2, h3 { line-height: 1.2; margin: 2.5rem 0 .5rem; }
h1 { margin-top: 0; }
p, figcaption, caption { color: var(--faint); }
p { max-width: 70rem; }
code { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: inherit; }
th { color: var(--faint); max-width: 9rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; max-width: none; white-space: nowrap; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(10rem, 1fr); gap: .6rem; margin: .6rem 0;
  overflow-x: auto; }
figure { margin: 0; }
figcaption { font-size: 13px; line-height: 1.3; min-height: 2.6em; }
img { width: 100%; display: block; image-rendering: pixelated; }
""".strip()


@dataclass(frozen=True)
class Scene:
    """One frame of a sequence under a condition, and why it is shown."""

    entry: SequenceEntry
    condition: str
    why: str


def write_page(
    report: Report, dataset: Dataset, contenders: Sequence[Contender], folder: Path, device: torch.device
) -> None:
    """Write index.html and its pictures/ into `folder`; the networks are already on `device`."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    about = report.provenance
    parts = [
        "<h1>Evaluation</h1>",
        f"<p><code>{escape(about.command)}</code></p>",
        f"<p>{escape(about.data)}, split {about.split}; {about.date}; {escape(about.machine)}, {escape(about.device)}. "
        'All tables, and how they are measured: <a href="report.md">report.md</a>; for programs: '
        '<a href="report.json">report.json</a>.</p>',
        *(_table(table) for table in report.summary_tables()),
    ]
    number = 0
    for condition in dict.fromkeys(row.condition for row in report.scores):
        for contender in (one for one in contenders if not one.is_control):
            parts.append(f"<h2>{escape(condition)}: {escape(contender.label)}</h2>")
            ours, before = compared(contender, contenders)
            for scene in scenes_of(report, dataset, condition, ours, before):
                parts.append(draw_scene(scene, number, dataset, contender, contenders, folder, device))
                number += 1
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    (folder / "index.html").write_text(page)


def compared(contender: Contender, contenders: Sequence[Contender]) -> tuple[Method, Method]:
    """What the pictures are about: two steps and HAT alone; where there is no U-Net, HAT alone and bicubic."""
    hat = hat_methods(contenders)[contender.label]
    return (hat, BICUBIC) if contender.unet is None else (two_steps(contender, "two-step"), hat)


def scenes_of(report: Report, dataset: Dataset, condition: str, ours: Method, before: Method) -> list[Scene]:
    """The sequences where `ours` gains most and least over `before`, by PSNR-Y, and the one in the middle."""
    psnrs = {(row.sequence, row.method): row.psnr_y_db or 0.0 for row in report.scores if row.condition == condition}
    gains = sorted((psnrs[name, ours] - psnrs[name, before], name) for name, method in psnrs if method == ours)
    entries = {entry.name: entry for entry in entries_of(dataset, report.provenance.split)}
    chosen: dict[str, str] = {}
    for (gain, name), which in ((gains[-1], "largest"), (gains[len(gains) // 2], "middle"), (gains[0], "smallest")):
        chosen.setdefault(name, f"the {which} gain of {len(gains)} sequences, {gain:+.2f} dB over {before.name}")
    return [Scene(entries[name], condition, why) for name, why in chosen.items()]


def draw_scene(
    scene: Scene,
    number: int,
    dataset: Dataset,
    contender: Contender,
    contenders: Sequence[Contender],
    folder: Path,
    device: torch.device,
) -> str:
    """Write a scene's pictures and return its HTML: a row of frames, one of parts, one of errors."""
    center = centers_of(scene.entry, 1)
    batch = triplets(dataset.read(scene.entry), scene.condition, center, device)
    target = batch.target
    results = {method: in_eight_bits(output) for method, output in outputs([contender], batch, None).items()}
    ours, before = compared(contender, [contender])
    columns = [NEAREST, BICUBIC, *(method for method in results if method.kind != "plain")]
    corner = where_they_differ(results[ours], results[before])
    frames, parts, errors = [], [], []
    for column, method in enumerate([*columns, TRUTH]):
        picture = target if method == TRUTH else results[method]
        caption = method.name
        if method != TRUTH:
            caption += f", {psnr_y(picture, target, border_px=BORDER_PX).item():.2f} dB"
            error = (luma(picture) - luma(target)).abs()
            errors.append((middle_of(ERROR_GAIN * error), f"{column}-error", f"error of {method.name}, x{ERROR_GAIN}"))
        frames.append((middle_of(picture), f"{column}-frame", caption))
        parts.append((part_of(picture, corner), f"{column}-part", method.name))
    between = (luma(results[ours]) - luma(results[before])).abs()
    errors.append((middle_of(ERROR_GAIN * between), "between", f"{ours.name} against {before.name}, x{ERROR_GAIN}"))
    y, x = corner
    html = [f"<h3>{escape(scene.entry.name)}, frame {center[0]}</h3>", f"<p>{escape(scene.why)}.</p>"]
    for row in (frames, parts, errors):
        figures = []
        for picture, name, caption in row:
            file = f"pictures/{number:03d}-{name}.png"
            save_png(picture, folder / file)
            figures.append(
                f'<figure><img src="{file}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
            )
        html.append(f'<div class="row">{"".join(figures)}</div>')
        if row is parts:
            html.append(
                f"<p>The part of {CROP_PX} px at ({x}, {y}), where {ours.name} and {before.name} differ most.</p>"
            )
    return "\n".join(html)


def where_they_differ(one: Tensor, other: Tensor) -> tuple[int, int]:
    """Top and left of the part where two (1, 3, H, W) pictures differ most, border aside."""
    side = min(CROP_PX, *one.shape[-2:])
    difference = (one - other).square().mean(1, keepdim=True)
    inner = torch.zeros_like(difference)
    inner[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = difference[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    means = F.avg_pool2d(inner, side, stride=1)
    top, left = divmod(int(means.argmax()), means.shape[-1])
    return top, left


def part_of(picture: Tensor, corner: tuple[int, int]) -> Tensor:
    """The part with this top and left."""
    top, left = corner
    return picture[..., top : top + CROP_PX, left : left + CROP_PX]


def middle_of(picture: Tensor) -> Tensor:
    """All of a small picture, the middle of a large one."""
    top, left = (max(0, side - PICTURE_PX) // 2 for side in picture.shape[-2:])
    return picture[..., top : top + PICTURE_PX, left : left + PICTURE_PX]


def save_png(picture: Tensor, path: Path) -> None:
    """(1, 3, H, W) or (1, 1, H, W) in [0, 1]; what is beyond is clamped."""
    # Here, not above: serving never needs Pillow and does not install it.
    from PIL import Image

    pixels = (picture[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    Image.fromarray(array).save(path, optimize=True)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n" + (f"<p>{escape(table.note)}</p>" if table.note else "")
    )
