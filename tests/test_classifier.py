"""The classifier that compares images: what it learns, what it keeps, what it refuses."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldae_fast.classifier import Classifier, as_images, fit_classifier, load_classifier
from ldae_fast.data import DataError, open_source


@pytest.fixture(scope="module")
def source(image_folder):
    return open_source(f"folder:{image_folder}", "train", 32)


@pytest.fixture(scope="module")
def fitted(source):
    # Two of the classes are each other's mirror image.
    return fit_classifier(source, 32, steps=30, width=8, batch=24, flip=False)


def test_it_learns_to_tell_the_classes_apart(fitted, image_folder):
    test = open_source(f"folder:{image_folder}", "test", 32)
    images = torch.from_numpy(np.stack([test.read(i) for i in range(len(test))]))
    with torch.no_grad():
        said = fitted(as_images(images)).argmax(1)
    assert (said == torch.from_numpy(test.labels)).float().mean() > 0.8  # chance is a third


def test_the_seed_alone_decides(source):
    def weights(seed):
        found = fit_classifier(source, 32, steps=4, seed=seed, width=8, batch=8, workers=seed)
        return torch.cat([p.flatten() for p in found.parameters()])

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_stages_are_maps_of_one_image_each():
    """Finest first, and no image changes another's features."""
    net = Classifier(10, 8)
    images = torch.rand(3, 3, 16, 24)
    maps = net.stages(images)
    assert [tuple(m.shape) for m in maps] == [
        (3, 8, 16, 24), (3, 16, 8, 12), (3, 32, 4, 6), (3, 64, 2, 3),
    ]  # fmt: skip
    for whole, alone in zip(maps, net.stages(images[1:2])):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(images), net.head(maps[-1].mean((2, 3))))


def test_mirrored_images_are_mirrored():
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    x = as_images(images, torch.tensor([True, False]))
    assert torch.equal(x[0], images[0].flip(1).permute(2, 0, 1) / 255)
    assert torch.equal(x[1], images[1].permute(2, 0, 1) / 255)


def test_file_round_trip(fitted, tmp_path):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(fitted.to_bytes())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(path)(images), fitted(images))


@pytest.mark.parametrize("content", ["pickle", "other", "torn"])
def test_other_files_are_refused_by_name(fitted, tmp_path, content):
    path = tmp_path / "wrong.safetensors"
    if content == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif content == "other":
        save_file({"x": torch.zeros(3)}, path)
    else:
        path.write_bytes(fitted.to_bytes()[:-50])
    with pytest.raises(DataError, match=r"wrong\.safetensors holds no classifier") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused(source):
    class One:
        name, classes = "folder:one", ("only",)

    with pytest.raises(DataError, match="folder:one has 1 class"):
        fit_classifier(One(), 32, steps=1)
