"""Inception-v3 against what torchvision and pytorch-fid compute, and what is no Inception-v3."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from ldae_fast.config import SettingError
from ldae_fast.evaluate.inception import Inception, load_inception
from ldae_fast.ops import normal

# Features 0, 100, 400, 800, 1200, 1700, 2000 of two images and the sum of all 2,048, under the
# weights of `known_weights`, from torchvision 0.28.0 (its inception_v3) and pytorch-fid 0.3.0
# (its InceptionV3) in float32 on a CPU.
FEATURES = [0, 100, 400, 800, 1200, 1700, 2000]
TORCHVISION = [
    [0.6249580, 0.2415153, 0.0227509, 0.0, 0.3913474, 0.8164635, 0.0153797, 358.06675],
    [0.6487858, 0.2357906, 0.0262317, 0.0, 0.3897513, 0.8227115, 0.0114757, 362.70428],
]
PYTORCH_FID = [
    [0.6156119, 0.2559696, 0.0284588, 0.0, 0.3888126, 0.8170791, 0.0526271, 374.38674],
    [0.6426350, 0.2500827, 0.0319689, 0.0, 0.3877053, 0.8224179, 0.0489790, 379.41269],
]


def known_weights(network) -> dict[str, torch.Tensor]:
    """Weights that any framework can make: Philox normals by a parameter's place in the names."""
    weights = {n: v for n, v in network.state_dict().items() if not n.endswith("batches_tracked")}
    for step, name in enumerate(sorted(weights)):
        shape = weights[name].shape
        noise = normal(0, step, torch.arange(1), shape.numel())[0].view(shape)
        if len(shape) == 4:
            weights[name] = noise * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith("bn.weight"):
            weights[name] = 1 + 0.1 * noise
        elif name.endswith("running_var"):
            weights[name] = 1 + 0.1 * noise.abs()
        else:
            weights[name] = 0.1 * noise
    return weights


def test_parameters_are_torchvisions():
    """27,161,264 are published; the auxiliary head and the classifier's 1,000 classes are left out.

    Names and shapes were compared with torchvision's own state dict when this was written.
    """
    network = Inception(fid=False)
    auxiliary = (768 * 128 + 2 * 128) + (128 * 768 * 25 + 2 * 768) + (768 * 1000 + 1000)
    own = sum(p.numel() for p in network.parameters())
    assert own + auxiliary + (2048 * 1000 + 1000) == 27_161_264
    shapes = {n: tuple(p.shape) for n, p in network.named_parameters()}
    assert len(shapes) == 94 * 3
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.bn.weight"] == (192,)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


@pytest.mark.parametrize(
    ("classes", "suffix", "name", "wanted"),
    [
        (1000, ".pth", "torchvision_inception_frechet", TORCHVISION),
        (1008, ".safetensors", "fid", PYTORCH_FID),
    ],
)
def test_features_are_the_other_libraries(tmp_path, classes, suffix, name, wanted):
    weights = known_weights(Inception(fid=False)) | {"fc.weight": torch.zeros(classes, 2048)}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    network = load_inception(path)
    noise = 128 + 50 * normal(1, 0, torch.arange(2), 16 * 16 * 3)
    images = noise.clamp(0, 255).to(torch.uint8).view(2, 16, 16, 3)
    found = network(images)
    assert network.name == name
    assert found.shape == (2, 2048)
    found = torch.cat([found[:, FEATURES], found.sum(1, keepdim=True)], 1)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_nothing_in_a_file_is_run(tmp_path):
    """A pickle that would make a file when it is read."""

    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    for write in (torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))):
        write({"fc.weight": Trap()}, tmp_path / "trap.pth")
        with pytest.raises(SettingError, match=r"trap\.pth holds no plain tensors"):
            load_inception(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, r"fc.weight must have 1008 rows .* or 1000 .*; got none"),
        ({"fc.weight": torch.zeros(10, 512)}, r"got \(10, 512\)"),
        (
            {"fc.weight": torch.zeros(1008, 2048), "Conv2d_1a_3x3.conv.weight": torch.zeros(1)},
            r"Conv2d_1a_3x3.conv.weight must be \(32, 3, 3, 3\); got \(1,\)",
        ),
        (
            {"fc.weight": torch.zeros(1008, 2048)},
            r"Conv2d_1a_3x3.conv.weight must be \(32, 3, 3, 3\); got none",
        ),
        ([torch.zeros(3)], "must hold a state dict"),
        ({"fc.weight": 3}, "must hold a state dict"),
    ],
)
def test_another_networks_file_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(SettingError, match=said) as caught:
        load_inception(tmp_path / "other.pth")
    assert "other.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.pth", "no.safetensors", "text.pth", "text.safetensors"])
def test_what_is_no_weights_file(tmp_path, name):
    if name.startswith("text"):
        (tmp_path / name).write_text("this is a poem")
    said = "cannot be read" if name.startswith("no") else "holds no plain tensors"
    with pytest.raises(SettingError, match=f"{name} {said}"):
        load_inception(tmp_path / name)
