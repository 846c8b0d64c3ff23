"""Codecs as training material: real prediction between frames, and nothing else changed."""

import numpy as np
import pytest

from worker.video.recompress import LossyCodec, recompress


def scene(frames: int) -> np.ndarray:
    """(T, 64, 96, 3): coarse colours that move, under fine noise that stands still."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(40, 200, (8, 20, 3)).repeat(8, axis=0).repeat(8, axis=1)
    fine = chance.integers(-12, 13, (64, 96, 3))
    return np.stack([np.clip(coarse[:, t : t + 96] + fine, 0, 255) for t in range(frames)]).astype(np.uint8)


@pytest.mark.parametrize("codec", list(LossyCodec))
def test_frames_are_predicted_from_each_other(codec: LossyCodec) -> None:
    # given a sequence, and each of its frames by itself
    frames = scene(12)

    together = recompress(frames, codec, crf=30)
    alone = [recompress(frames[t : t + 1], codec, crf=30) for t in range(12)]

    # then only the first is coded by itself, and together they take far fewer bytes
    assert together.picture_types[0] == "I"
    assert set(together.picture_types[1:]) <= {"P", "B"}
    assert {one.picture_types for one in alone} == {"I"}
    assert together.size_bytes < 0.6 * sum(one.size_bytes for one in alone)


@pytest.mark.parametrize("codec", [LossyCodec.H264, LossyCodec.HEVC])
def test_b_frames_are_used_as_in_video_on_the_net_and_come_back_in_order(codec: LossyCodec) -> None:
    frames = np.stack([np.full((64, 64, 3), 20 * number, dtype=np.uint8) for number in range(12)])
    result = recompress(frames, codec, crf=10)

    assert "B" in recompress(scene(25), codec, crf=28).picture_types
    assert np.abs(result.frames.mean(axis=(1, 2, 3)) - 20 * np.arange(12)).max() < 2


@pytest.mark.parametrize("codec", list(LossyCodec))
@pytest.mark.parametrize(("height", "width"), [(24, 40), (64, 96)])
def test_the_same_frames_give_the_same_result(codec: LossyCodec, height: int, width: int) -> None:
    frames = scene(25)[:, :height, :width]
    first = recompress(frames, codec, crf=26)

    for _ in range(5):
        again = recompress(frames, codec, crf=26)
        assert np.array_equal(again.frames, first.frames)
        assert again.size_bytes == first.size_bytes


def test_hd_frames_are_taken_for_the_matrix_that_players_assume() -> None:
    # given pure colours in frames just below and just at the height of high definition
    for height in (718, 720):
        frames = np.zeros((1, height, 64, 3), dtype=np.uint8)
        frames[..., 0], frames[..., 1] = 200, 40

        result = recompress(frames, LossyCodec.H264, crf=1)

        assert np.abs(result.frames.astype(int) - frames).max() <= 3
