"""Data sets by name, from tiny copies in each official layout."""

import os
import pickle

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from layouts import (  # noqa: E402
    CIFAR,
    batch_of_python2,
    cifar_folders,
    cifar_pickles,
    clothes,
    draw,
    idx,
    noise,
    signs,
    string,
    tiny,
)

from tacfast.data import MissingDataError, fashion_mnist, load_dataset  # noqa: E402
from tacfast.data.folders import FORMATS, SUFFIXES  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TACFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TACFAST_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "debian"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def assert_images(data, pixels, labels, n_train):
    assert data.data.images.dtype == torch.uint8
    assert np.array_equal(data.data.images.numpy(), np.stack(pixels))
    assert data.data.labels.tolist() == list(labels)
    assert data.n_train == n_train
    assert data.image_shape == np.stack(pixels).shape[1:]


# --- CIFAR-10


@pytest.mark.parametrize("names", [CIFAR, tuple(map(str, range(10)))])
@pytest.mark.parametrize("place", ["cifar10", "."])
def test_cifar10_in_folders(root, names, place):
    pixels = cifar_folders(root / place, names)
    data = load_dataset("cifar10", root)
    assert_images(data, pixels, [k for k in range(10) for _ in range(2)] + list(range(10)), 20)
    assert data.class_names == CIFAR
    assert (data.num_classes, data.padding, data.flip) == (10, 4, True)


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "."])
def test_cifar10_as_it_is_published(root, place):
    pixels, labels = cifar_pickles(root / place)
    for _ in range(2):
        assert_images(load_dataset("cifar10", root), pixels, labels, 10)


class Hostile:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_run_no_code(root, protocol):
    cifar_pickles(root / "cifar-10-batches-py")
    batch, mark = root / "cifar-10-batches-py" / "data_batch_3", root / "mark"
    batch.write_bytes(pickle.dumps({"data": Hostile(mark), "labels": []}, protocol))
    with pytest.raises(
        ValueError, match=r"expected a batch of CIFAR-10, got .*data_batch_3: it asks for (posix|nt).mkdir"
    ):
        load_dataset("cifar10", root)
    assert not mark.exists()
    batch.write_bytes(b"\x80\x02cnumpy\nsave\n" + string(b"mark") + b"\x85R.")
    with pytest.raises(ValueError, match=r"it asks for numpy\.save"):
        load_dataset("cifar10", root)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        batch_of_python2(noise(2, 3072), [0, 10]),
        batch_of_python2(noise(2, 3072), [0]),
        batch_of_python2(noise(2, 3000), [0, 1]),
        batch_of_python2(noise(2, 3072), [0, 1])[:-2000],
        pickle.dumps([1]),
    ],
)
def test_damaged_batches(root, content):
    cifar_pickles(root / "cifar-10-batches-py")
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"data: expected a batch of CIFAR-10, got .*test_batch: ."):
        load_dataset("cifar10", root)


def test_a_missing_batch(root):
    cifar_pickles(root / "cifar-10-batches-py")
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(MissingDataError, match=r"data: expected a file .*data_batch_4, which does not exist"):
        load_dataset("cifar10", root)


# --- GTSRB


@pytest.mark.parametrize("place", ["gtsrb", "."])
def test_gtsrb(root, place):
    pixels = signs(root / place)
    data = load_dataset("gtsrb", root)
    assert_images(data, pixels, [*range(43), 16, 42, 0], 43)
    assert (data.class_names[1], data.class_names[14], data.class_names[42]) == (
        "speed limit 30",
        "stop",
        "end of no passing for vehicles over 3.5 t",
    )
    assert len(set(data.class_names)) == 43
    assert not data.flip


def test_gtsrb_is_where_torchvision_expects_it(root):
    datasets = pytest.importorskip("torchvision.datasets")
    signs(root / "gtsrb")
    data = load_dataset("gtsrb", root)
    for split, part in (("train", range(43)), ("test", range(43, 46))):
        theirs = datasets.GTSRB(str(root), split)
        assert len(theirs) == len(part)
        expected = {(np.asarray(image).transpose(2, 0, 1).tobytes(), label) for image, label in theirs}
        images, labels = data.data.images[part], data.data.labels[part]
        assert {(x.numpy().tobytes(), y) for x, y in zip(images, labels.tolist(), strict=True)} == expected


def test_signs_of_another_size_are_resized(root):
    signs(root)
    left_and_right = np.zeros((64, 64, 3), np.uint8)
    left_and_right[:, 32:] = 200
    Image.fromarray(left_and_right).save(root / "GTSRB" / "Training" / "00007" / "00000_00001.ppm")
    image = load_dataset("gtsrb", root).data.images[7]
    assert image.shape == (3, 32, 32)
    assert int(image[:, :, :15].max()) == 0
    assert int(image[:, :, 17:].min()) == 200


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ("Filename;ClassId\n00000.ppm;43\n", ValueError, "expected classes 0 to 42 in .*GT-final_test.csv, got 43"),
        ("Filename,ClassId\n00000.ppm,4\n", ValueError, "expected columns Filename;…;ClassId in .*GT-final_test.csv"),
        ("Filename;ClassId\n00000.ppm\n", ValueError, "expected columns Filename;…;ClassId in .*GT-final_test.csv"),
        ("Filename;ClassId\n9.ppm;4\n", MissingDataError, r"named in .*test.csv, got none for 9.ppm in .*Final_Test"),
        ("Filename;ClassId\n../Images/00000.ppm;4\n", MissingDataError, "got none for ../Images"),
        (None, MissingDataError, "expected a file .*GT-final_test.csv, which does not exist"),
    ],
)
def test_answers_that_do_not_fit(root, answers, error, message):
    signs(root)
    path = root / "GT-final_test.csv"
    path.unlink() if answers is None else path.write_text(answers)
    with pytest.raises(error, match=message):
        load_dataset("gtsrb", root)


def test_a_class_without_images(root):
    signs(root)
    image = root / "GTSRB" / "Training" / "00004" / "00000_00001.ppm"
    image.rename(image.with_suffix(".txt"))
    with pytest.raises(MissingDataError, match=r"data: expected images \(\.ppm\), got none in .*00004"):
        load_dataset("gtsrb", root)
    image.with_suffix(".txt").unlink()
    image.parent.rmdir()
    with pytest.raises(MissingDataError, match=r"data: expected a folder of images .*00004, which does not exist"):
        load_dataset("gtsrb", root)


# --- Tiny ImageNet


@pytest.mark.parametrize("place", ["tiny-imagenet-200", "."])
def test_tiny_imagenet(root, place):
    pixels = tiny(root / place)
    data = load_dataset("tinyimagenet", root)
    assert_images(data, pixels, [0, 0, 1, 1, 2, 2, 2, 1, 0], 6)
    assert data.class_names == ("goldfish", "n02", "Coffee mug")
    (root / place / "words.txt").unlink()
    assert load_dataset("tinyimagenet", root).class_names == ("n01", "n02", "n10")


@pytest.mark.parametrize(
    ("annotations", "error", "message"),
    [
        ("val_0.JPEG\tn99\t0\t0\t1\t1\n", ValueError, "a wnid in every line of .*val_annotations.txt, got .*n99"),
        ("val_0.JPEG\n", ValueError, "a wnid in every line of .*val_annotations.txt, got"),
        ("val_9.JPEG\tn01\n", MissingDataError, "named in .*val_annotations.txt, got none for val_9.JPEG"),
        (None, MissingDataError, "expected a file .*val_annotations.txt, which does not exist"),
    ],
)
def test_annotations_that_do_not_fit(root, annotations, error, message):
    tiny(root)
    path = root / "val" / "val_annotations.txt"
    path.unlink() if annotations is None else path.write_text(annotations)
    with pytest.raises(error, match=message):
        load_dataset("tinyimagenet", root)


# --- Fashion-MNIST


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_fashion_mnist(root, place, compress):
    pixels, labels = clothes(root / place, compress)
    data = load_dataset("fashion-mnist", root)
    assert_images(data, pixels, labels, 5)
    assert data.class_names[9] == "ankle boot"
    assert (data.mean, data.std) == ((0.286,), (0.353,))


def test_the_package_of_debian_is_found_by_itself(root, tmp_path):
    pixels, labels = clothes(tmp_path / "debian", compress=True)
    assert_images(load_dataset("fashion-mnist", root), pixels, labels, 5)


def test_fashion_mnist_is_where_torchvision_expects_it(root):
    datasets = pytest.importorskip("torchvision.datasets")
    clothes(root / "FashionMNIST" / "raw", compress=False)
    data = load_dataset("fashion-mnist", root)
    for train, part in ((True, slice(0, 5)), (False, slice(5, 7))):
        theirs = datasets.FashionMNIST(str(root), train=train)
        assert torch.equal(data.data.images[part, 0], theirs.data)
        assert torch.equal(data.data.labels[part], theirs.targets)
    assert list(data.class_names) == [name.lower().replace("t-shirt", "T-shirt") for name in theirs.classes]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(noise(4, 28, 28)), "expected 5 images to match the labels, got 4 in"),
        ("train-images-idx3-ubyte", idx(noise(5, 28, 27)), "expected an IDX file of bytes of shape .* in"),
        ("train-images-idx3-ubyte", idx(noise(5, 28, 28))[:-1], "expected an IDX file"),
        ("train-images-idx3-ubyte", idx(noise(5, 28)), "expected an IDX file"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0", "expected an IDX file"),
        ("train-labels-idx1-ubyte", b"", "expected an IDX file"),
        ("train-labels-idx1-ubyte", idx(np.full(5, 10, np.uint8)), "expected labels 0 to 9 in"),
        ("train-labels-idx1-ubyte", idx(noise(0)), "expected labels 0 to 9 in"),
    ],
)
def test_damaged_idx_files(root, name, content, message):
    clothes(root, compress=False)
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{message}.* .*{name}"):
        load_dataset("fashion-mnist", root)


@pytest.mark.parametrize("change", [lambda raw: b"x" + raw, lambda raw: raw[:-9], lambda raw: raw[:12] + b"x" * 9])
def test_damaged_compressed_files(root, change):
    clothes(root, compress=True)
    path = root / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"data: expected a file compressed by gzip, got {path}"):
        load_dataset("fashion-mnist", root)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"expected a file .*t10k-labels-idx1-ubyte or .*\.gz"):
        load_dataset("fashion-mnist", root)


# --- any folder


def test_a_folder_of_classes(root):
    pixels = [draw(root / name / f"{i}.PNG", 8) for name in ("ant", "bee", "train") for i in range(2)]
    (root / "bee" / "notes.txt").write_text("no image")
    (root / "ant" / ".hidden.png").write_text("no image")
    data = load_dataset("folder", root)
    assert_images(data, pixels, [0, 0, 1, 1, 2, 2], 6)
    assert data.class_names == ("ant", "bee", "train")
    assert (data.padding, data.flip) == (1, False)
    splits = data.split(clean=0.2, test=0.2, held_out=0.2)
    assert [len(share) for share in (splits.train, splits.clean, splits.held_out, splits.test)] == [3, 1, 1, 1]


def test_a_folder_with_a_test_set(root):
    pixels = [draw(root / part / name / "0.png", 8) for part in ("train", "test") for name in ("2", "10", "1", "0")]
    with pytest.raises(ValueError, match="expected folders named by different classes 0 to 3, got 10"):
        load_dataset("folder", root)
    for part in ("train", "test"):
        (root / part / "10").rename(root / part / "3")
    data = load_dataset("folder", root)
    assert_images(data, [pixels[i] for i in (3, 2, 0, 1, 7, 6, 4, 5)], [0, 1, 2, 3] * 2, 4)
    assert data.split(clean=0.25, held_out=0.25).test.tolist() == [4, 5, 6, 7]
    (root / "test" / "0").rename(root / "test" / "x0")
    with pytest.raises(ValueError, match=r"expected folders named as the classes \(0, 1, 2, 3\), got x0"):
        load_dataset("folder", root)


def test_a_test_set_without_a_class(root):
    for part, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            draw(root / part / name / "0.png", 8)
    with pytest.raises(MissingDataError, match=r"expected one folder per class in .*test, got none for c"):
        load_dataset("folder", root)


def test_images_get_the_size_and_the_colours_of_the_first(root):
    draw(root / "a" / "0.png", 8)
    Image.new("L", (24, 16), 77).save(root / "a" / "1.png")
    data = load_dataset("folder", root)
    assert data.image_shape == (3, 8, 8)
    assert (data.data.images[1] == 77).all()


# --- what is missing


@pytest.mark.parametrize(
    ("name", "places", "layout"),
    [
        ("cifar10", ["cifar10", "CIFAR10"], ["cifar-10-batches-py/test_batch", "train/<class>/*"]),
        ("gtsrb", ["gtsrb"], ["GTSRB/Training/<00000 to 00042>/*.ppm", "GT-final_test.csv"]),
        ("tinyimagenet", ["tiny-imagenet-200"], ["wnids.txt", "val/val_annotations.txt"]),
        ("fashion-mnist", ["FashionMNIST/raw", "fashion-mnist"], ["train-images-idx3-ubyte", ".gz"]),
    ],
)
def test_a_missing_data_set_is_one_line(root, name, places, layout):
    with pytest.raises(MissingDataError) as caught:
        load_dataset(name, root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"data: {name} not found: looked for ")
    assert message.endswith("; --data-root or TACFAST_DATA says where")
    assert all(str(root / place) in message for place in places)
    assert all(words in message for words in layout)


def test_a_missing_folder(root):
    with pytest.raises(MissingDataError, match=r"expected one folder per class in .*nowhere, which does not exist"):
        load_dataset("folder", root / "nowhere")
    with pytest.raises(MissingDataError, match=r"expected one folder per class, got none in .*data"):
        load_dataset("folder", root)


def test_names_and_roots(root, monkeypatch):
    with pytest.raises(ValueError, match=r"data: expected one of cifar10, gtsrb, .*, folder, got 'mnist'"):
        load_dataset("mnist", root)
    draw(root / "ant" / "0.png", 8)
    monkeypatch.setenv("TACFAST_DATA", str(root))
    assert load_dataset("folder").class_names == ("ant",)
    monkeypatch.setenv("HOME", str(root.parent))
    assert load_dataset("folder", "~/data").class_names == ("ant",)
    monkeypatch.delenv("TACFAST_DATA")
    monkeypatch.chdir(root)
    assert load_dataset("folder").class_names == ("ant",)


def test_digits_need_no_folder(root, cache):
    pytest.importorskip("sklearn")
    data = load_dataset("digits", root)
    assert (data.image_shape, data.num_classes, data.n_train, len(data.data)) == ((1, 8, 8), 10, 1797, 1797)
    assert not cache.exists()
    splits = data.split(clean=0.05, test=0.25)
    assert (len(splits.clean), len(splits.test)) == (90, 449)


def test_endings_are_those_of_the_formats():
    assert set(SUFFIXES) == {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
