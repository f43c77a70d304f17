"""Samples of runs: every row's way from prediction to pixels, and `ldae sample` as it is called."""

import json
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import flags, quick_tokenizer, write_images
from PIL import Image

from ldae_fast.classifier import Classifier, load_classifier
from ldae_fast.cli import main
from ldae_fast.config import SettingError
from ldae_fast.data import open_source
from ldae_fast.evaluate import classifier_features
from ldae_fast.evaluate.classifier_features import ClassifierFeatures
from ldae_fast.evaluate.frechet import digest
from ldae_fast.evaluate.generate import generate
from ldae_fast.evaluate.protocol import Subject
from ldae_fast.evaluate.sample import Sampling
from ldae_fast.objective import Objective
from ldae_fast.recipes import build_config
from ldae_fast.train.engine import build_model
from ldae_fast.train.probe import load_subject
from ldae_fast.train.sample import check, images_of

SIZE = {"model.width": 32, "model.depth": 1, "model.decoder_depth": 1, "model.heads": 2}
ROWS = [f"row{number}" for number in range(13)]


@pytest.fixture(scope="module")
def images():
    coarse = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def make(row, images, model=None, **changes) -> Subject:
    """A run of that row as evaluation sees it, with its own network or `model` in its place."""
    config = build_config(row, 32, "", SIZE | changes)
    tokenizer = quick_tokenizer(config, images)
    objective = Objective(config.objective, config.noise, tokenizer, config.seed, config.speed.fold)
    model = model or build_model(config, tokenizer)
    return Subject(config, objective, {"trained": model}, nullcontext, torch.device("cpu"))


class Knows(torch.nn.Module):
    """Stands where the network stands and has learnt one image by heart."""

    encoder = SimpleNamespace(positions=torch.zeros(64, 1))

    def __init__(self, image):
        super().__init__()
        self.image = image

    def fold_embedding(self, basis, scale, center):
        return None

    def forward(self, tokens, t, fold=None, labels=None):
        """tokens are noisy latents, or the patches that they decode to."""
        objective = self.subject.objective
        tokenizer, config = objective.tokenizer, objective.config
        patches = tokenizer.patches(self.image[None])
        z_0 = tokenizer.encode(patches)
        if config.predict == "noise":
            gamma, sigma = (v[:, None, None] for v in objective.schedule.at(t))
            return (tokens - gamma * z_0) / sigma
        return {"latent": z_0, "reconstruction": tokenizer.decode(z_0), "image": patches}[
            config.target
        ].expand(len(tokens), -1, -1)


@pytest.mark.parametrize(
    ("row", "eta"), [*((row, 1.0) for row in ROWS), ("row7", 0.0), ("row12", 0.0)]
)
def test_every_row_gives_back_the_one_image_it_knows(row, images, eta):
    """Which is that image's round trip through the tokenizer, to a rounding of its bytes."""
    model = Knows(images[2])
    model.subject = subject = make(row, images, model)
    tokenizer = subject.objective.tokenizer
    patches = tokenizer.decode(tokenizer.encode(tokenizer.patches(images[2:3])))
    wanted = (255 * tokenizer.images(patches, 32)).clamp(0, 255)
    got = generate(subject, torch.arange(3), Sampling(steps=7, eta=eta))
    assert got.dtype == torch.uint8
    assert (got.float() - wanted).abs().max() < 0.6


@pytest.mark.parametrize("row", ["row0", "row5", "row6", "row7"])
def test_tokenizers_know_their_latents_variance(row, images):
    tokenizer = make(row, images, **{"tokenizer.scale": "global"}).objective.tokenizer
    latents = tokenizer.encode(tokenizer.patches(images)).flatten(0, 1)
    torch.testing.assert_close(tokenizer.latent_variance, latents.var(0), rtol=1e-3, atol=1e-6)


def moved(subject: Subject) -> Subject:
    """Its network away from its first weights, which give nothing but zeros."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in subject.models["trained"].parameters():
            p += 0.05 * torch.randn(p.shape, generator=dice)
    return subject


@pytest.mark.parametrize("row", ["row10", "row12"])
def test_network_reads_the_picture_that_the_latents_decode_to(row, images):
    """Latents through the folded embedding and pictures through the embedding: the same samples."""
    folded, plain = (
        generate(moved(make(row, images, **{"speed.fold": fold})), torch.arange(4), Sampling(8))
        for fold in ("true", "false")
    )
    assert (folded.int() - plain.int()).abs().max() <= 1
    assert folded.float().std() > 10


@pytest.mark.parametrize("row", ["row7", "row12"])
def test_a_sample_does_not_depend_on_its_batch(row, images):
    """To one level of 255: a product may add up in another order in a batch of another size."""
    subject = moved(make(row, images))
    whole = generate(subject, torch.arange(5), Sampling(8))
    parts = [generate(subject, ids, Sampling(8)) for ids in torch.arange(5).split([1, 4])]
    assert (whole.int() - torch.cat(parts).int()).abs().max() <= 1
    assert (whole[0].int() - whole[1].int()).abs().max() > 10


def test_samples_that_blew_up_are_refused(images):
    subject = moved(make("row12", images))
    with torch.no_grad():
        subject.models["trained"].decoder.out.bias += torch.inf
    with pytest.raises(SettingError, match="samples are not finite"):
        generate(subject, torch.arange(2), Sampling(4))


def test_a_conditional_network_is_told_its_class(images):
    """Each class in turn, or the one asked for; None beside it where guidance wants that."""

    class Told(Knows):
        def forward(self, tokens, t, fold=None, labels=None):
            self.told.append(None if labels is None else labels.tolist())
            return super().forward(tokens, t, fold, labels)

    model = Told(images[0])
    model.subject, model.told = make("row0", images, model, **{"model.classes": "3"}), []
    line = SimpleNamespace(update=lambda share, fields: None)

    def told(how, label):
        model.told.clear()
        list(images_of(model.subject, 5, how, label, line))
        return model.told

    assert told(Sampling(1), None) == [[0, 1, 2, 0, 1]]
    assert told(Sampling(1), 2) == [[2] * 5]
    assert told(Sampling(1, guidance=2.0), 1) == [[1] * 5, None]


def test_labels_and_guidance_reach_the_pictures(images):
    told = {"model.conditional": "true", "model.classes": "3"}
    subject, ids = moved(make("row7", images, **told)), torch.arange(4)
    with torch.no_grad():
        subject.models["trained"].modulation.labels.weight *= 50

    def drawn(label, guidance=0.0):
        labels = torch.full((4,), label) if label is not None else None
        return generate(subject, ids, Sampling(8, guidance=guidance), labels).int()

    pictures = [drawn(None), drawn(0), drawn(2), drawn(2, 3.0)]
    for one, other in combinations(pictures, 2):
        assert (one - other).abs().max() > 3
    check(subject, 4, Sampling(8, guidance=3.0), 2, distance=False)
    with pytest.raises(SettingError, match="--label must be 0 to 2; got 3"):
        check(subject, 4, Sampling(8), 3, distance=False)


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "row7"
    words = ["train", "row7", "--data", f"folder:{image_folder}", "--steps", "2", *flags()]
    assert main([*words, "--out", str(out)]) == 0
    return out


def tiles(path: Path) -> np.ndarray:
    """What lies under the title in a picture of ten samples of 160 pixels."""
    return np.asarray(Image.open(path).convert("RGB"))[100:596, 40:704]


def test_a_picture_of_samples(run, tmp_path, capsys):
    assert main(["sample", str(run), "--count", "10", "--steps", "3"]) == 0
    assert capsys.readouterr().out == f"picture: {run / 'pictures' / 'samples.png'}\n"
    first = tiles(run / "pictures" / "samples.png")
    drawn = generate(load_subject(run, "trained", {}), torch.arange(10), Sampling(3)).numpy()
    assert (first[168:328, 168:328] == drawn[5].repeat(5, 0).repeat(5, 1)).all()
    words = ["sample", str(run), "--count", "10", "--steps", "3", "--out"]
    assert main([*words, str(tmp_path / "same.png")]) == 0
    assert (tiles(tmp_path / "same.png") == first).all()
    for number, other in enumerate((["--seed", "1"], ["--sampler", "ddim"], ["--weights", "ema"])):
        assert main([*words, str(tmp_path / f"{number}.png"), *other]) == 0
        assert (tiles(tmp_path / f"{number}.png") != first).any()


def test_samples_do_not_replace_what_is_no_picture(run, capsys):
    config = run / "config.json"
    before = config.read_bytes()
    assert main(["sample", str(run), "--count", "4", "--steps", "3", "--out", str(config)]) == 2
    assert capsys.readouterr().err == f"ldae: --out must end in .png; got {config}\n"
    assert config.read_bytes() == before


def kept(folder: Path) -> Path:
    """A file with a small classifier of three classes."""
    torch.manual_seed(0)
    (folder / "classifier.safetensors").write_bytes(Classifier(3, 8).to_bytes())
    return folder / "classifier.safetensors"


def scipys_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) of features (N, F)."""
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    shared = np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return apart + sum(np.trace(c) for c in covariances) - 2 * shared


def test_distance_is_named_by_its_network_and_stands_beside_real_images(
    run, image_folder, tmp_path, capsys
):
    words = ["--frechet", f"folder:{image_folder}", "--classifier", str(kept(tmp_path))]
    assert main(["sample", str(run), "--count", "70", "--steps", "3", *words]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    features = ClassifierFeatures(load_classifier(kept(tmp_path)))
    real, unseen = (
        features(torch.stack([torch.from_numpy(s.read(i)) for i in range(len(s))])).double().numpy()
        for s in (open_source(f"folder:{image_folder}", split, 32) for split in ("train", "test"))
    )
    assert (result["train_images"], result["test_images"]) == (len(real), len(unseen))
    wanted = scipys_distance(unseen, real)
    assert result["classifier_frechet_of_test_images"] == pytest.approx(wanted, rel=1e-3)
    assert result["classifier_frechet"] > wanted
    assert result["network"] == digest(features)
    assert "fid" not in result
    assert result["caution"] == ""
    assert (result["count"], result["eta"], result["steps"]) == (70, 1.0, 3)
    assert main(["sample", str(run), "--count", "20", "--steps", "1", *words]) == 0
    said = capsys.readouterr()
    assert "20 samples of 64 features" in json.loads(said.out)["caution"]
    assert "20 samples of 64 features" in said.err


def test_classifier_is_kept_and_depends_on_the_data_alone(
    run, image_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(classifier_features, "STEPS", 2)
    file = tmp_path / "new.safetensors"
    words = ["--count", "4", "--steps", "1", "--frechet", f"folder:{image_folder}"]
    digests = []
    for more in (["--classifier", str(file)], []):
        assert main(["sample", str(run), *words, *more]) == 0
        digests.append(json.loads(capsys.readouterr().out)["network"])
        assert file.exists()
    assert len(set(digests)) == 1  # the same seed trains the same network


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "2000"], "--steps must be 1 to 999, the run's noise levels; got 2000"),
        (["--label", "1"], "need a class-conditional run"),
        (["--guidance", "2"], "need a class-conditional run"),
        (["--guidance", "-1"], "--guidance must be 0 or more; got -1"),
        (["--eta", "2", "--sampler", "ddim"], "--eta must be 0 to 1"),
        (["--eta", "0.5"], "beside --sampler ddim; got 0.5"),
        (["--inception", "x.pth"], "need --frechet DATA"),
        (["--frechet", "photoz"], "did you mean photos?"),
        (["--frechet", "photos", "--count", "1"], "--count must be 2 or more"),
        (["--frechet", "photos", "--inception", "a", "--classifier", "b"], "give one"),
        (["--model.depth", "3"], "unexpected argument '--model.depth'"),
    ],
)
def test_what_cannot_be_asked(run, capsys, words, said):
    assert main(["sample", str(run), *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("ldae: ")
    assert line.count("\n") == 1
    assert said in line


def test_one_test_image_has_no_covariance(run, tmp_path, capsys):
    few = write_images(tmp_path / "few", classes=1, each=10)  # every tenth is a test image
    assert main(["sample", str(run), "--count", "3", "--steps", "1", "--frechet", f"folder:{few}",
                 "--classifier", str(kept(tmp_path))]) == 2  # fmt: skip
    assert "a covariance needs at least 2 samples; got 1" in capsys.readouterr().err


def test_inception_is_looked_at_before_any_image(run, image_folder, tmp_path, capsys):
    (tmp_path / "x.pth").write_text("poem")
    words = ["--frechet", f"folder:{image_folder}", "--inception", str(tmp_path / "x.pth")]
    assert main(["sample", str(run), *words]) == 2
    assert "x.pth holds no plain tensors" in capsys.readouterr().err
