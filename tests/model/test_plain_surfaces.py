"""Plain surfaces stay plain; where there is anything to see, the networks have their own way, to the bit."""

import torch

from model.plain_surfaces import keep_plain_surfaces, local_spread

LEVEL = 1 / 255


def test_a_pattern_on_a_plain_surface_is_taken_away() -> None:
    # given an even surface but for one level of noise, and a network that draws a pattern on it
    noise = torch.randint(0, 2, (1, 3, 12, 16), generator=torch.Generator().manual_seed(0)) * LEVEL
    frame = 0.6 + noise
    drawn = 0.6 + 12 * LEVEL * torch.ones(1, 3, 24, 32).cumsum(-1).remainder(2)
    # then nothing of the pattern is left, and what is left is no wider than the noise
    kept = keep_plain_surfaces(drawn, frame)
    assert kept.min() >= 0.6
    assert kept.max() <= 0.6 + LEVEL + 1e-6


def test_detail_is_left_to_the_networks_bit_for_bit() -> None:
    # given a frame of which the left half has detail, and the right half is plain
    frame = torch.full((1, 3, 12, 32), 0.4)
    frame[..., :16] += 0.1 * torch.ones(1, 3, 12, 16).cumsum(-1).remainder(2)
    drawn = torch.rand(1, 3, 24, 64, generator=torch.Generator().manual_seed(0))
    kept = keep_plain_surfaces(drawn, frame)
    # then the left half is what the network drew, and two pixels beyond the edge the right half is plain
    assert torch.equal(kept[..., :32], drawn[..., :32])
    assert torch.allclose(kept[..., 2 * 19 :], torch.tensor(0.4))


def test_the_spread_is_the_largest_difference_in_the_window_of_the_worst_colour() -> None:
    frame = torch.zeros(1, 3, 9, 9)
    frame[0, 1, 4, 4] = 0.5
    spread = local_spread(frame)
    # a window of two pixels around each: five by five pixels see the one that differs
    assert torch.equal(spread[0, 0] > 0, torch.nn.functional.pad(torch.ones(5, 5), (2, 2, 2, 2)) > 0)
    assert spread.max() == 0.5


def test_the_number_of_threads_changes_nothing() -> None:
    # given frames between plain and detailed everywhere, of shapes that no number of threads divides evenly
    threads_before = torch.get_num_threads()
    for shape in ((1, 3, 48, 64), (2, 3, 90, 160), (1, 3, 181, 323)):
        chance = torch.Generator().manual_seed(0)
        frame = 0.5 + 2 * LEVEL * torch.rand(shape, generator=chance)
        drawn = torch.rand(*shape[:2], 2 * shape[2], 2 * shape[3], generator=chance)
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(keep_plain_surfaces(drawn, frame))
        torch.set_num_threads(threads_before)
        for result in results[1:]:
            assert torch.equal(results[0], result)
