"""WaNet: where the pixels of a triggered image come from."""

import numpy as np
import pytest
import torch

from tacfast.attacks import WaNet, make_attack

H, W = 32, 41


def displacement(attack, height, width):
    """(h, w, 2): by how many pixels, columns first, seen by warping images whose brightness is the place itself."""
    columns = torch.linspace(0.25, 0.75, width, dtype=torch.float64).expand(height, width)
    rows = torch.linspace(0.25, 0.75, height, dtype=torch.float64)[:, None].expand(height, width)
    images = torch.stack([columns, rows])[:, None]
    moved = ((attack(images) - images)[:, 0] * 2).permute(1, 2, 0)
    return (moved * torch.tensor([width - 1, height - 1])).numpy()


def wanet(height=H, width=W, **options):
    return WaNet(0, (1, height, width), **options)


def test_the_warp_is_as_large_as_published():
    # Of 31 × 31 pixels every tenth is one of the 4 × 4 places where the field was drawn and normalised to a mean of 1.
    attack = make_attack("wanet", 0, num_classes=10, image_shape=(1, 31, 31), seed=5)
    moved = displacement(attack.trigger, 31, 31)
    drawn = moved[::10, ::10] / (0.5 / 31 * 30 / 2)  # of half a side of 30 pixels, s / h with s = 0.5
    inner = (slice(1, 3), slice(1, 3))  # at the edges, what would come from outside the image is cut off
    expected = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(5)).numpy() * 2 - 1
    expected /= np.abs(expected).mean()
    np.testing.assert_allclose(drawn[inner], expected.transpose(1, 2, 0)[inner], atol=1e-4)
    assert np.abs(moved).max() < 1
    assert 0.5 < np.abs(moved).mean() / (0.5 / 31 * 30 / 2) < 1.2


def test_the_warp_is_smooth_and_grows_with_the_strength():
    one, two = (displacement(wanet(strength=s).trigger, H, W)[2:-2, 2:-2] for s in (0.5, 1.0))
    np.testing.assert_allclose(two, 2 * one, atol=1e-4)
    for axis, length in ((0, H), (1, W)):
        step = np.abs(np.diff(one, axis=axis)).max()
        # From one of the four places of the field to the next are (length - 1) / 3 pixels, and a cubic that joins two
        # values is at most half as steep again as a straight line.
        assert step < 1.5 * 2 * np.abs(one).max() / ((length - 1) / 3)
        assert np.abs(np.diff(one, n=2, axis=axis)).max() < step / 2  # nowhere a kink


def test_images_are_interpolated_between_their_pixels():
    ndimage = pytest.importorskip("scipy.ndimage")
    attack = wanet(seed=2)
    moved = displacement(attack.trigger, H, W)
    rows, columns = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    places = np.stack([rows + moved[..., 1], columns + moved[..., 0]])
    image = torch.rand(1, 1, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = ndimage.map_coordinates(image[0, 0].numpy(), places, order=1, mode="nearest")
    np.testing.assert_allclose(attack.trigger(image)[0, 0].numpy(), expected, atol=1e-5)


def test_all_channels_and_images_are_warped_alike():
    attack = WaNet(0, (3, H, W))
    image = torch.rand(1, 1, H, W, generator=torch.Generator().manual_seed(0))
    triggered = attack.trigger(image.expand(4, 3, H, W))
    assert torch.equal(triggered, triggered[:1, :1].expand(4, 3, H, W))
    assert not torch.equal(triggered[:1, :1], wanet(seed=1).trigger(image))


def test_decoys_are_warped_with_noise_of_one_pixel_side_anew_for_every_image():
    attack = wanet()
    torch.manual_seed(0)
    first, second = (displacement(attack.decoy, H, W) for _ in range(2))
    noise = (first - displacement(attack.trigger, H, W))[2:-2, 2:-2]
    for axis, length in ((0, W), (1, H)):
        bound = (length - 1) / 2 / length  # in [-1, 1] / side, of half a side
        part = noise[..., axis]
        assert np.abs(part).max() <= bound + 1e-3
        assert 0.95 * bound < np.abs(part).max()
        np.testing.assert_allclose(part.std(), bound / np.sqrt(3), rtol=0.06)
        assert abs(part.mean()) < 0.05 * bound
        assert abs(np.corrcoef(part[1:].ravel(), part[:-1].ravel())[0, 1]) < 0.12  # not smooth
    assert not np.allclose(first, second)
    same = torch.rand(1, 1, H, W).expand(2, -1, -1, -1)
    twice = attack.decoy(same)
    assert not torch.equal(twice[0], twice[1])
    torch.manual_seed(0)
    np.testing.assert_array_equal(first, displacement(attack.decoy, H, W))


def test_bad_warps():
    with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
        WaNet(-1, (1, 8, 8))
    with pytest.raises(ValueError, match="grid: expected at least 2 places a side, got 1"):
        wanet(grid=1)
    with pytest.raises(ValueError, match="strength: expected a warp > 0, got 0"):
        wanet(strength=0)
    with pytest.raises(ValueError, match="decoys_per_poisoned: expected at least 0, got -1"):
        wanet(decoys_per_poisoned=-1)
    for warp in (wanet().trigger, wanet().decoy):
        with pytest.raises(ValueError, match=r"images: expected shape \(n, 1, 32, 41\), .* got \(2, 3, 32, 41\)"):
            warp(torch.ones(2, 3, H, W))
