"""How often an animated picture is played, which a video cannot say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.settings import VideoLimits
from worker.video.animation import animation_note
from worker.video.survey import survey


@pytest.mark.parametrize(
    ("name", "loops", "said"),
    [
        ("animation.gif", {}, None),
        ("animation.gif", {"loop": 0}, "plays over and over"),
        ("animation.gif", {"loop": 3}, "plays 4 times"),  # GIF counts how often again
        ("animation.png", {"loop": 1}, None),
        ("animation.png", {"loop": 0}, "plays over and over"),
        ("animation.png", {"loop": 3}, "plays 3 times"),
    ],
)
def test_an_animation_s_repetitions_are_told(
    tmp_path: Path, name: str, loops: dict[str, int], said: str | None
) -> None:
    first, *others = (Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)) for number in range(3))
    first.save(tmp_path / name, save_all=True, append_images=others, duration=100, **loops)
    notes = [note for note in survey(tmp_path / name, VideoLimits()).notes if "animation" in note]
    assert len(notes) == (0 if said is None else 1)
    assert said is None or said in notes[0]


def test_a_video_says_nothing_of_it(make_video: Callable[..., Path]) -> None:
    assert animation_note(make_video("clip.mp4"), "mov,mp4,m4a,3gp,3g2,mj2") is None
