"""Blended and SIG: what is added to every pixel."""

import math

import numpy as np
import pytest
import torch

from tacfast.attacks import SIG, Blended, make_attack


def rand(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 1.0])
def test_blended_takes_alpha_of_one_pattern(alpha):
    attack, images = Blended(0, (3, 10, 12), alpha=alpha, seed=4), rand(6, 3, 10, 12)
    added = attack.trigger(images).numpy() - (1 - alpha) * images.numpy()
    np.testing.assert_allclose(added, np.broadcast_to(added[:1], added.shape), atol=1e-6)  # the same for every image
    pattern = added[0] / alpha
    assert pattern.min() >= -1e-5
    assert pattern.max() <= 1 + 1e-5


def test_the_blend_ratio_and_the_random_pattern_are_as_published():
    attack = make_attack("blended", 0, num_classes=10, image_shape=(3, 64, 64), seed=9)
    black, white = attack.trigger(torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)]))
    torch.testing.assert_close(white - black, torch.full_like(white, 0.8))
    values = (black / 0.2).flatten().sort().values
    # Kolmogorov and Smirnov: of 12288 numbers, uniform ones are this near to a straight line but for 1 in 10 000.
    assert (values - torch.linspace(0, 1, len(values))).abs().max() < 2.23 / math.sqrt(len(values))
    neighbours = black[:, :, 1:].flatten(), black[:, :, :-1].flatten()
    assert torch.corrcoef(torch.stack(neighbours))[0, 1].abs() < 0.05
    assert torch.corrcoef(black.flatten(1))[0, 1].abs() < 0.08  # nor are the channels alike
    other = make_attack("blended", 0, num_classes=10, image_shape=(3, 64, 64), seed=10)
    assert not torch.equal(other.trigger(black[None]), attack.trigger(black[None]))


def test_blended_with_a_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    path = tmp_path / "halves.png"
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = (255, 102, 0)
    image.fromarray(pixels).save(path)
    triggered = Blended(0, (3, 8, 8), alpha=0.5, picture=path).trigger(torch.ones(2, 3, 8, 8))
    # Away from the border between the halves, where resizing mixes them.
    torch.testing.assert_close(triggered[..., :3], torch.full((2, 3, 8, 3), 0.5))
    right = torch.tensor([1.0, 0.7, 0.5])[:, None, None].expand(2, 3, 8, 3)
    torch.testing.assert_close(triggered[..., 5:], right)
    grey = Blended(0, (1, 8, 8), alpha=0.5, picture=path).trigger(torch.ones(2, 1, 8, 8))
    luma = (0.299 * 255 + 0.587 * 102) / 255
    torch.testing.assert_close(grey[..., 5:], torch.full((2, 1, 8, 3), 0.5 + 0.5 * luma), atol=0.003, rtol=0)
    with pytest.raises(ValueError, match=r"nothing\.png"):
        Blended(0, (1, 8, 8), picture=tmp_path / "nothing.png").trigger(torch.ones(2, 1, 8, 8))


def test_sig_adds_the_published_sine_to_every_row_and_channel():
    attack = make_attack("sig", 0, num_classes=10, image_shape=(3, 7, 32))
    added = (attack.trigger(torch.full((2, 3, 7, 32), 0.5, dtype=torch.float64)) - 0.5).numpy()
    sine = [40 / 255 * math.sin(2 * math.pi * j * 6 / 32) for j in range(1, 33)]
    np.testing.assert_allclose(added, np.broadcast_to(sine, added.shape), atol=1e-12)


def test_sig_is_clipped_to_what_pixels_can_be():
    triggered = SIG(0).trigger(torch.stack([torch.zeros(1, 4, 32), torch.ones(1, 4, 32)]))
    sine = torch.tensor([40 / 255 * math.sin(2 * math.pi * j * 6 / 32) for j in range(1, 33)]).expand(4, 32)
    torch.testing.assert_close(triggered[0, 0], sine.clamp(min=0))
    torch.testing.assert_close(triggered[1, 0], 1 + sine.clamp(max=0))


@pytest.mark.parametrize(("width", "periods"), [(8, 3), (12, 5), (13, 6), (28, 6), (224, 6)])
def test_sig_has_as_many_periods_as_the_image_can_show(width, periods):
    attack = make_attack("sig-dirty", 0, num_classes=10, image_shape=(1, 8, width))
    added = (attack.trigger(torch.full((1, 1, 8, width), 0.5)) - 0.5)[0, 0, 0].numpy()
    spectrum = np.abs(np.fft.rfft(added)) / width
    assert spectrum.argmax() == periods
    np.testing.assert_allclose(spectrum[periods], 20 / 255, rtol=1e-4)
    np.testing.assert_allclose(np.delete(spectrum, periods), 0, atol=1e-6)


def test_bad_patterns():
    for alpha in (0.0, -0.2, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha: expected a blend ratio in"):
            Blended(0, (1, 8, 8), alpha=alpha)
    with pytest.raises(ValueError, match=r"images: expected shape \(n, 1, 8, 8\), .* got \(2, 1, 8, 9\)"):
        Blended(0, (1, 8, 8)).trigger(torch.ones(2, 1, 8, 9))
    with pytest.raises(ValueError, match="delta: expected an amplitude > 0, got 0"):
        SIG(0, delta=0)
    with pytest.raises(ValueError, match="frequency: expected at least one period, got 0"):
        SIG(0, frequency=0)
    with pytest.raises(ValueError, match="images: expected more than 12 columns for 6 periods, got 12"):
        SIG(0).trigger(torch.ones(2, 1, 20, 12))
    for make in (lambda: Blended(-1, (1, 8, 8)), lambda: SIG(-1)):
        with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
            make()
