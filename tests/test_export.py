"""Export: the folded encoder is the encoder, and no foreign or damaged file is taken for one."""

import json
import random
from dataclasses import asdict

import pytest
import torch
from conftest import TINY
from safetensors import safe_open
from safetensors.torch import save, save_file

from ldae_fast.cli import main
from ldae_fast.recipes import build_config
from ldae_fast.train.checkpoint import CheckpointError
from ldae_fast.train.export import FORMAT, digest, export, load_vit, plain_vit
from ldae_fast.train.folder import Launch, RunFolder
from ldae_fast.train.loop import Run
from ldae_fast.train.probe import load_subject
from ldae_fast.vit import normalise


def stir(model, seed=1):
    """Moves every weight off its start, so that no gate is zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)


def trained(image_folder, path, recipe="ldae", **changes):
    """The folder of a run whose weights lie far from their start; it was not evaluated."""
    config = build_config(recipe, 32, "", TINY | changes)
    run = Run(config, Launch(f"folder:{image_folder}", steps=1), RunFolder(path))
    run.start()
    stir(run.engine.model)
    run.fit_model()
    return path


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    return trained(image_folder, tmp_path_factory.mktemp("export") / "run", **{"model.depth": "3"})


@pytest.mark.parametrize(
    ("recipe", "changes", "overrides"),
    [
        ("ldae", {}, {}),
        ("ldae", {"model.depth": "3", "model.gelu": "tanh"}, {"evaluate.t": "700"}),
        ("ldae", {"model.gates": "false"}, {"evaluate.cut": "2"}),
        ("row7", {}, {}),  # whose encoder reads latents
    ],
)
def test_the_plain_vit_is_the_encoder(image_folder, tmp_path, recipe, changes, overrides):
    """At its level and cut; at another level it is not."""
    subject = load_subject(
        trained(image_folder, tmp_path / "run", recipe, **changes), "trained", overrides
    )
    model, tokenizer, config = (
        subject.models["trained"],
        subject.objective.tokenizer,
        subject.config,
    )
    vit = plain_vit(subject)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 32, 32, 3), generator=g, dtype=torch.uint8)
    patches = tokenizer.patches(images)
    if recipe == "row7":
        patches = tokenizer.encode(patches)

    def encoded(t):
        return model.encode(patches, torch.full((5,), t), config.evaluate.cut)

    with torch.no_grad():
        got, wanted = vit(normalise(images, vit.config)), encoded(config.evaluate.t)
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
        assert (got - encoded(300)).abs().max() > 1e-3 * wanted.abs().max()


def test_a_file_gives_the_same_encoder_back(run, tmp_path):
    for weights in ("trained", "ema"):
        made = export(run, tmp_path / f"{weights}.safetensors", weights, {})
        read = load_vit(tmp_path / f"{weights}.safetensors")
        assert read.config == made.config
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, read.state_dict()[name])
    files = [(tmp_path / f"{w}.safetensors").read_bytes() for w in ("trained", "ema")]
    assert files[0] != files[1]
    with safe_open(tmp_path / "ema.safetensors", framework="pt") as file:
        source = json.loads(file.metadata()["source"])
        assert file.get_slice("patch_embed.proj.weight").get_shape() == [32, 3, 8, 8]
    assert source == {"run": str(run), "recipe": "ldae", "weights": "ema", "t": 10}
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".safetensors"] == []


def test_damage_is_detected(run, tmp_path):
    """Bit flips, cuts and zeroed pages at random places, seeded: never a wrong encoder."""
    path, dice = tmp_path / "encoder.safetensors", random.Random(0)
    whole = export(run, path, "trained", {}).state_dict()
    content = path.read_bytes()
    refused = 0
    for trial in range(150):
        damaged, place = bytearray(content), dice.randrange(len(content))
        if trial % 2:  # half of them in the header
            place = dice.randrange(8 + int.from_bytes(content[:8], "little"))
        if trial % 5 == 0:
            del damaged[place:]
        elif trial % 5 == 1:
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        else:
            damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            read = load_vit(path).state_dict()
        except CheckpointError:
            refused += 1
        else:  # a changed blank in the header, or zeros made zeros
            assert all(torch.equal(read[name], tensor) for name, tensor in whole.items())
    assert refused > 140


def sealed(vit, **changes) -> bytes:
    """A file with a right digest over settings that may be wrong."""
    words = {"format": FORMAT, "config": json.dumps(asdict(vit.config) | changes), "source": "{}"}
    tensors = dict(vit.state_dict())
    return save(tensors, words | {"sha256": digest(tensors, words)})


def test_foreign_files_are_refused_in_a_sentence(run, tmp_path):
    path = tmp_path / "encoder.safetensors"
    vit = export(run, path, "trained", {})
    for changes in ({"depth": 10**9}, {"width": 10**9}, {"depth": 2}, {"heads": 5}, {"patch": 0},
                    {"image_size": 64}, {"width": "32"}, {"mean": 3}, {"extra": 1}):  # fmt: skip
        path.write_bytes(sealed(vit, **changes))
        with pytest.raises(CheckpointError, match="is damaged: ") as caught:
            load_vit(path)
        assert str(path) in str(caught.value)
    path.write_bytes(sealed(vit))
    load_vit(path)
    save_file(vit.state_dict(), path)
    with pytest.raises(CheckpointError, match="no encoder written by `ldae export`"):
        load_vit(path)
    torch.save(vit.state_dict(), path)  # a pickle
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load_vit(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_vit(tmp_path / "nothing")


def test_only_an_earlier_export_is_replaced(run, tmp_path, capsys):
    checkpoint = next(run.glob("checkpoints/step-*/model.safetensors"))
    before = checkpoint.read_bytes()
    assert main(["export", str(run), "--out", str(checkpoint)]) == 2
    assert "is there already, and no encoder of `ldae export`" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    out = ["--out", str(tmp_path / "e.safetensors")]
    assert main(["export", str(run), *out]) == main(["export", str(run), *out]) == 0


def test_command_line(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "e.bin")]) == 2
    assert "ldae: --out must end in .safetensors" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "e.safetensors")]
    assert main(["export", str(run), *out, "--evaluate.cut", "2"]) == 0
    said = capsys.readouterr().out
    assert "a ViT of 2 blocks, width 32, patch 8, for images of 32 x 32" in said
    assert load_vit(tmp_path / "e.safetensors").config.depth == 2
