import pickle
import shutil

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")

from tacfast.data import FolderLoader, Preprocessing, find_images, hold_out  # noqa: E402

GREY, COLOUR = Preprocessing((0.25,), (0.5,)), Preprocessing((0.0, 0.5, 0.25), (1.0, 0.5, 0.25))


def draw(path, value=100, size=(4, 4), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("ant", "bee", "cat")):
        for i in range(3):
            draw(tmp_path / name / f"{i}.png", 10 * k + i)
    return tmp_path


def read(loader):
    batches = list(loader)
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([labels for _, labels in batches])


def test_folders_are_classes_in_alphabetical_order(folder):
    images = find_images(folder, GREY, 3)
    assert images.class_names == ("ant", "bee", "cat")
    inputs, labels = read(FolderLoader(images, 2))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    expected = (torch.tensor([0, 1, 2, 10, 11, 12, 20, 21, 22]) / 255 - 0.25) / 0.5
    torch.testing.assert_close(inputs, expected.view(-1, 1, 1, 1).expand(-1, 1, 4, 4))


def test_the_order_is_that_of_torchvision(folder):
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(folder)
    ours = find_images(folder, GREY, 3)
    assert [(str(path), label) for path, label in zip(ours.paths, ours.labels, strict=True)] == theirs.samples


def test_numbers_are_the_classes_themselves(tmp_path):
    for name in ("10", "9", "002"):
        draw(tmp_path / name / "deep" / "er" / "a.png")
    images = find_images(tmp_path, GREY, 12)
    assert dict(zip((path.parts[-4] for path in images.paths), images.labels, strict=True)) == {
        "10": 10,
        "9": 9,
        "002": 2,
    }
    assert images.class_names == tuple(map(str, range(12)))


def test_names_set_the_order_and_may_lack_images(folder):
    images = find_images(folder, GREY, 4, class_names=("cat", "ant", "dog", "bee"))
    assert images.labels == (1, 1, 1, 3, 3, 3, 0, 0, 0)
    assert images.class_names == ("cat", "ant", "dog", "bee")


def test_numbers_may_have_names(tmp_path):
    for name in ("2", "0"):
        draw(tmp_path / name / "a.png")
    images = find_images(tmp_path, GREY, 3, class_names=("ant", "bee", "cat"))
    assert images.labels == (0, 2)
    assert images.class_names == ("ant", "bee", "cat")
    assert find_images(tmp_path, GREY, 3, class_names=("2", "1", "0")).labels == (2, 0)


def test_an_empty_folder_is_a_class(folder):
    (folder / "dog").mkdir()
    images = find_images(folder, GREY, 4)
    assert images.class_names == ("ant", "bee", "cat", "dog")
    assert set(images.labels) == {0, 1, 2}


def test_images_alone_have_no_labels(tmp_path):
    for i in range(3):
        draw(tmp_path / f"{i}.png", i)
    draw(tmp_path / ".hidden.png")
    images = find_images(tmp_path, GREY, 10)
    assert images.labels is None
    assert images.class_names is None
    (batch,) = FolderLoader(images, 8)
    assert batch.shape == (3, 1, 4, 4)


def test_links_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "cat").rename(elsewhere / "felines")
    (folder / "cat").symlink_to(elsewhere / "felines")
    (elsewhere / "felines" / "again").symlink_to(folder)
    assert find_images(folder, GREY, 3).labels == (0, 0, 0, 1, 1, 1, 2, 2, 2)


def test_names_that_cannot_be_printed_are_refused(folder):
    (folder / "cat").rename(folder / "c\x1b[31mat")
    with pytest.raises(ValueError, match=r"data: expected folders with printable names, got 'c\\x1b\[31mat'"):
        find_images(folder, GREY, 3)


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError()])
def test_whatever_a_decoder_raises_the_file_is_unreadable(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"data: expected an image, got .*0\.png: (odd|MemoryError)"):
        list(FolderLoader(find_images(folder, GREY, 3), 1))


def test_extreme_shapes_take_no_memory(tmp_path):
    draw(tmp_path / "a.png", 255, size=(1, 200_000))
    (batch,) = FolderLoader(find_images(tmp_path, Preprocessing((0.0,), (1.0,), (224, 224)), 2), 1)
    assert bool((batch == 1).all())


def test_what_is_no_image_is_passed_over(folder):
    (folder / "ant" / "Thumbs.db").write_text("no image")
    (folder / "README.txt").write_text("no image")
    draw(folder / ".cache" / "x.png")
    assert len(find_images(folder, GREY, 3)) == 9


def test_errors_name_what_is_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: expected a folder of images, got .*nowhere"):
        find_images(tmp_path / "nowhere", GREY, 3)
    with pytest.raises(NotADirectoryError, match=r"data: expected a folder of images, got .*0\.png"):
        find_images(folder / "ant" / "0.png", GREY, 3)
    with pytest.raises(ValueError, match=r"one folder for each of the 5 classes, got 3 \(ant, bee, cat\)"):
        find_images(folder, GREY, 5)
    with pytest.raises(ValueError, match=r"named as the classes \(ant, bee\), got cat$"):
        find_images(folder, GREY, 2, class_names=("ant", "bee"))
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match="data: expected images, got none in"):
        find_images(folder / "none", GREY, 3)
    draw(folder / "loose.png")
    with pytest.raises(ValueError, match=r"got 1 of 10 there, such as loose\.png"):
        find_images(folder, GREY, 3)


@pytest.mark.parametrize(("names", "came"), [(("0", "1", "3"), "3"), (("1", "01"), "01, 1")])
def test_numbers_that_are_no_classes(tmp_path, names, came):
    for name in names:
        draw(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match=f"different classes 0 to 2, got {came}"):
        find_images(tmp_path, GREY, 3)


def test_grey_and_colour_become_what_the_network_takes(tmp_path):
    draw(tmp_path / "grey.png", 51)
    (batch,) = FolderLoader(find_images(tmp_path, COLOUR, 2), 1)
    torch.testing.assert_close(batch[0, :, 0, 0], torch.tensor([0.2, -0.6, -0.2]))
    draw(tmp_path / "grey.png", (255, 255, 255), mode="RGB")
    (batch,) = FolderLoader(find_images(tmp_path, GREY, 2), 1)
    torch.testing.assert_close(batch, torch.full((1, 1, 4, 4), 1.5))


def test_what_pil_only_warns_of_is_read(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 255, 0, 255])
    picture.save(tmp_path / "a.png", transparency=b"\x00\x80")
    (batch,) = FolderLoader(find_images(tmp_path, Preprocessing((0.0,) * 3, (1.0,) * 3), 2), 1)
    assert batch[0, :, 0, 0].tolist() == [1.0, 0.0, 1.0]


def test_the_central_square_is_cut_out(tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (batch,) = FolderLoader(find_images(tmp_path, Preprocessing((0.0,), (1.0,), image_size=(8, 8)), 2), 1)
    torch.testing.assert_close(batch, torch.ones(1, 1, 8, 8))
    (small,) = FolderLoader(find_images(tmp_path, Preprocessing((0.0,), (1.0,), image_size=(4, 4)), 2), 1)
    assert small.shape == (1, 1, 4, 4)
    (tall,) = FolderLoader(find_images(tmp_path, Preprocessing((0.0,), (1.0,), image_size=(16, 4)), 2), 1)
    torch.testing.assert_close(tall, torch.ones(1, 1, 16, 4))


@pytest.mark.parametrize("batch_size", [1, 9])
def test_images_of_different_sizes_need_a_size(folder, batch_size):
    draw(folder / "cat" / "9.png", size=(5, 6))
    with pytest.raises(ValueError, match=r"image_size: needed where images differ in size: .*4×4 and 6×5 pixels"):
        list(FolderLoader(find_images(folder, GREY, 3), batch_size))
    assert len(list(FolderLoader(find_images(folder, Preprocessing((0.0,), (1.0,), (4, 4)), 3), batch_size)))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_an_error_or_counted(folder, workers):
    (folder / "bee" / "1.png").write_bytes(b"no image")
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(folder / "ant" / "2.png")
    images = find_images(folder, GREY, 3)
    with pytest.raises(ValueError, match=r"data: expected an image, got .*ant.2\.png: 8 bits per channel"):
        list(FolderLoader(images, 1, workers=workers))
    loader = FolderLoader(images, 1, skip_unreadable=True, workers=workers)
    for _ in range(2):
        _, labels = read(loader)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert [message.split(": ")[1].rsplit("/", 2)[-2] for message in loader.unreadable] == ["ant", "bee", "cat"]


def test_images_that_are_gone_with_their_folder_are_an_error_though_unreadable_ones_are_skipped(folder):
    loader = FolderLoader(find_images(folder, GREY, 3), 1, skip_unreadable=True)
    batches = iter(loader)
    next(batches)
    shutil.rmtree(folder / "bee")
    with pytest.raises(ValueError, match=r"data: expected an image, got .*bee.*No such file"):
        list(batches)
    assert not loader.unreadable


def test_a_decompression_bomb_is_unreadable(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(ValueError, match=r"data: expected an image.*decompression bomb"):
        list(FolderLoader(find_images(folder, GREY, 3), 1))


def test_shuffling_leaves_out_the_incomplete_batch(folder):
    images = find_images(folder, GREY, 3)
    torch.manual_seed(0)
    loader = FolderLoader(images, 4, shuffle=True)
    orders = [read(loader)[1].tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    assert len(orders[0]) == 8
    assert len(read(FolderLoader(images, 10, shuffle=True))[1]) == 9


def test_subsets_and_processes(folder):
    images = find_images(folder, GREY, 3).subset([8, 0])
    assert images.labels == (2, 0)
    assert [path.name for path in images.paths] == ["2.png", "0.png"]
    assert pickle.loads(pickle.dumps(images)).labels == images.labels  # other systems start processes by pickling


@pytest.mark.parametrize(
    ("mean", "std", "size", "message"),
    [
        ((0.5, 0.5), (1.0, 1.0), None, r"mean: expected one finite number \(grey\) or three \(colour\), got 0.5, 0.5"),
        ((0.5,), (1.0, 1.0, 1.0), None, r"std: expected as many numbers as mean \(1\), got 3"),
        ((0.5,), (0.0,), None, "std: expected numbers > 0, got 0"),
        ((float("nan"),), (1.0,), None, "mean: expected one finite number"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), None, r"for pixels in \[0, 1\].*divide"),
        ((0.5,), (1.0,), (0, 4), "image_size: expected height and width >= 1, got 0, 4"),
    ],
)
def test_bad_preprocessing(mean, std, size, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(mean, std, size)


def test_holding_out_is_by_class_and_repeatable():
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    kept, held = hold_out(labels, 0.2, seed=3)
    assert sorted(kept + held) == list(range(63))
    assert [sum(labels[i] == k for i in held) for k in range(4)] == [10, 2, 0, 0]
    assert (kept, held) == hold_out(labels, 0.2, seed=3)
    assert held != hold_out(labels, 0.2, seed=4)[1]
    with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\), got 1"):
        hold_out(labels, 1.0)
