"""Settings of a run: typed, frozen, grouped by effect, checked before any work is done."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


class SettingError(ValueError):
    """A setting that is unknown, of the wrong type or out of range, as one sentence."""


def setting(default: Any, says: str, least: int | None = None) -> Any:
    """A field of a group: what `--help` says of it, and the least number that it may be."""
    return field(default=default, metadata={"says": says, "least": least})


# --- What changes results -------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    image_size: int = setting(32, "pixels, the side that the model sees", least=1)
    augment: Literal["center", "random-resized-crop"] = setting("center", "of training images")
    flip: bool = setting(True, "mirror half of the samples")
    min_crop: float = setting(0.2, "smallest share of the area that a random resized crop keeps")
    bad_images: Literal["replace", "raise"] = setting("replace", "what a broken image does")


@dataclass(frozen=True)
class TokenizerConfig:
    kind: Literal["pca", "pixel", "patch-ae", "patch-vae", "conv-vae"] = setting(
        "pca", "what makes latents of patches, or (conv-vae) of whole images"
    )
    d: int = setting(16, "latent values a token", least=1)
    scale: Literal["global", "whiten", "none"] = setting(
        "whiten", "latents by one factor, each to unit variance, or as they are"
    )
    patches: int = setting(200_000, "random patches that it is fitted on", least=2)
    file: str = setting("", "a fitted tokenizer to take instead, made by `ldae tokenizer`")
    # The others are of the convolutional kind, which is trained by gradient on whole images.
    channels: int = setting(16, "conv-vae: of the first level", least=1)
    steps: int = setting(1000, "conv-vae: of its training", least=1)
    batch: int = setting(64, "conv-vae: images a step", least=1)
    lr: float = setting(1e-3, "conv-vae: learning rate", least=0)
    reconstruction: float = setting(1.0, "conv-vae: weight of L1", least=0)
    kl: float = setting(1e-6, "conv-vae: weight of the KL term", least=0)
    perceptual: float = setting(0.0, "conv-vae: weight of the perceptual term", least=0)
    adversarial: float = setting(0.0, "conv-vae: weight of the adversarial term", least=0)
    adversarial_start: float = setting(0.5, "conv-vae: share of its training before that term")
    vgg: str = setting("", "conv-vae: torchvision's VGG16 for the perceptual term; else a "
                       "classifier is trained here")  # fmt: skip
    classifier_steps: int = setting(1000, "conv-vae: of that classifier's training", least=1)


@dataclass(frozen=True)
class NoiseConfig:
    schedule: Literal["ddpm", "linear", "unscaled", "single"] = setting(
        "unscaled", "gamma_t and sigma_t; single is one level"
    )
    levels: int = setting(1000, "of the schedule, beside the clean one", least=1)
    single_sigma: float = setting(0.5773502691896258, "sqrt(1/3): the one level's", least=0)


@dataclass(frozen=True)
class ModelConfig:
    patch: int = setting(4, "pixels, the side of a token", least=1)
    width: int = setting(192, "values a token inside the network", least=1)
    depth: int = setting(3, "encoder blocks", least=1)
    decoder_depth: int = setting(3, "decoder blocks", least=0)
    decoder_width: int = setting(0, "where patches are masked; 0 is half the encoder's", least=0)
    heads: int = setting(3, "of attention, which share the width", least=1)
    mlp_ratio: int = setting(4, "hidden values of a block's MLP over its width", least=1)
    gates: bool = setting(True, "adaLN-Zero gates on the residual branches")
    gelu: Literal["none", "tanh"] = setting("none", "exact, or the tanh approximation")
    conditional: bool = setting(False, "told the image's class in training")
    classes: int = setting(0, "of the data; found by the run where the network is told them", 0)


@dataclass(frozen=True)
class ObjectiveConfig:
    predict: Literal["clean", "noise", "masked"] = setting(
        "clean", "what is learnt; masked is MAE's hidden patches"
    )
    input: Literal["image", "latent"] = setting("image", "what the network is given")
    target: Literal["image", "reconstruction", "latent"] = setting(
        "image", "what it must give back"
    )
    level_weight: Literal["one", "gamma_squared", "inverse_variance"] = setting(
        "inverse_variance", "of a sample's loss, by its noise level"
    )
    rest_weight: float = setting(0.1, "weight of the components that the tokenizer drops", least=0)
    label_dropout: float = setting(
        0.1, "share of the samples whose class a conditional network is not told"
    )
    mask_ratio: float = setting(0.75, "masked: share of the patches that are hidden")
    mask_norm: bool = setting(True, "masked: predict patches of zero mean and unit variance each")


@dataclass(frozen=True)
class OptimizerConfig:
    batch: int = setting(256, "images a step", least=1)
    base_lr: float = setting(1e-4, "per 256 images: the rate is base_lr * batch / 256", least=0)
    warmup: float = setting(0.25, "share of the run")
    weight_decay: float = setting(0.0, "of every parameter, decoupled", least=0)
    beta1: float = setting(0.9, "of AdamW")
    beta2: float = setting(0.999, "of AdamW")
    clip: float = setting(0.0, "largest gradient norm; 0 is off", least=0)
    ema: float = setting(0.9999, "decay of the averaged weights")
    accumulate: int = setting(1, "passes that a batch is split into", least=1)
    precision: Literal["auto", "float32", "bfloat16", "float8", "float8-emulated"] = setting(
        "auto",
        "float8: the blocks' linears as they train, all else in bfloat16; emulated: on a CPU",
    )

    @property
    def float8(self) -> bool:
        return self.precision.startswith("float8")


@dataclass(frozen=True)
class EvaluateConfig:
    t: int = setting(10, "noise level that the encoder is told")
    input: Literal["raw", "pca", "noisy"] = setting(
        "raw", "the clean image, its PCA round trip, or with noise"
    )
    cut: int = setting(0, "encoder ends after this block; 0 is the encoder's own depth")
    views: int = setting(1, "cached views of a training image: one plain, others augmented", 1)
    epochs: int = setting(90, "of the linear probe", least=1)
    batch: int = setting(16384, "of it, at most; a small set uses a sixteenth of itself", least=1)
    base_lr: float = setting(6.4e-3, "of it; the sweep tries multiples", least=0)
    knn_k: int = setting(20, "neighbours that vote", least=1)
    knn_temperature: float = setting(0.07, "of their votes")


# --- What decides fine-tuning alone ---------------------------------------------------------------


@dataclass(frozen=True)
class FinetuneConfig:
    batch: int = setting(1024, "images a step", least=1)
    base_lr: float = setting(1e-3, "per 256 images: the rate is base_lr * batch / 256", least=0)
    warmup: float = setting(0.05, "share of the run: 5 epochs of 100")
    weight_decay: float = setting(0.05, "of matrices; biases and norms have none", least=0)
    beta1: float = setting(0.9, "of AdamW")
    beta2: float = setting(0.999, "of AdamW")
    ema: float = setting(0.9999, "decay of the averaged weights")
    layer_decay: float = setting(
        0.0, "rate of a block over that of the one above; 0: by the encoder, 0.65 for L, else 0.85"
    )
    drop_path: float = setting(0.1, "in the last block, falling to 0 in the first")
    mixup: float = setting(0.8, "parameter of the Beta distribution of shares; 0 is off", least=0)
    cutmix: float = setting(1.0, "the same; of the two, one is drawn for each batch", least=0)
    smoothing: float = setting(0.1, "of the labels")
    randaugment: float = setting(9.0, "magnitude, up to 10; 0 is off")
    min_crop: float = setting(0.08, "smallest share of the area that a random resized crop keeps")
    flip: bool = setting(True, "mirror half of the samples")
    accumulate: int = setting(1, "parts that a batch is computed in: less memory, the same result")
    hold_out: bool = setting(
        True, "every tenth training image, to measure on meanwhile; false trains on all"
    )


# --- What only changes speed or what is kept ------------------------------------------------------


@dataclass(frozen=True)
class SpeedConfig:
    compile: Literal["auto", "off", "blocks", "on", "graph"] = setting(
        "auto",
        "torch.compile of a block, of all (on), captured too (graph); on a GPU auto is blocks, or "
        "graph where a batch is too small to keep it busy",
    )
    recompute: bool = setting(
        False, "cheap activations again in the backward pass: larger batches fit"
    )
    fold: bool = setting(True, "inverse PCA folded into the patch embedding")
    weight_copy: bool = setting(
        True, "low-precision weights from the optimizer, not cast in every step"
    )
    workers: int = setting(-1, "threads that read ahead; -1: by the cores, 0 reads in line", -1)
    cache_mb: int = setting(4096, "MiB of memory for decoded images", least=0)


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(0, "steps; 0 saves ten times a run", least=0)
    keep: int = setting(2, "newest checkpoints kept", least=1)


@dataclass(frozen=True)
class ReportConfig:
    log_every: int = setting(0, "steps; 0 logs about 200 lines a run", least=0)
    knn_every: int = setting(0, "steps; 0 probes by kNN about ten times a run", least=0)
    knn_images: int = setting(4000, "of which a quarter ask and the rest answer", least=0)


@dataclass(frozen=True)
class Config:
    """A whole run. The first seven groups and the seed decide its results, the others do not;
    finetune decides those of `ldae finetune`.
    """

    recipe: str = "ldae"
    seed: int = setting(0, "of every random draw", least=0)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


MOST_SIDE = 65_536  # pixels; beyond, sizes leave 64 bits
MOST_WORKERS = 1024  # threads; the system may refuse a process more
NO_RESULT = ("speed", "checkpoint", "report")  # groups of settings that decide no result
# What `ldae finetune` takes beside finetune.*, and what of that changes no result.
FINETUNE_NO_RESULT = ("speed.workers", "checkpoint.every", "checkpoint.keep", "report.log_every")
FINETUNE_TAKES = ("seed", "data.bad_images", *FINETUNE_NO_RESULT)
GROUPS = {f.name for f in dataclasses.fields(Config) if f.name not in ("recipe", "seed")}


def settings(config: Config) -> Iterator[tuple[str, Any, Mapping]]:
    """Every setting: its dotted name, such as model.depth, its value, what `setting` was told."""
    owners = {"": config} | {f"{group}.": getattr(config, group) for group in sorted(GROUPS)}
    for prefix, owner in owners.items():
        for f in dataclasses.fields(owner):
            if "says" in f.metadata:
                yield prefix + f.name, getattr(owner, f.name), f.metadata


def setting_names() -> list[str]:
    """Every dotted name, such as model.depth."""
    return [name for name, _, _ in settings(Config())]


def setting_type(name: str) -> Any:
    """The type that a setting is declared with."""
    group, _, key = name.rpartition(".")
    owner = getattr(Config(), group) if group else Config()
    return typing.get_type_hints(type(owner))[key]


def set_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with dotted settings changed; text is read as the setting's type."""
    for name, value in values.items():
        if name not in setting_names():
            near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else "; `ldae train --help` lists them"
            raise SettingError(f"unknown setting {name!r}{hint}")
        group, _, key = name.rpartition(".")
        owner = getattr(config, group) if group else config
        changed = replace(owner, **{key: parse(name, setting_type(name), value)})
        config = replace(config, **{group: changed}) if group else changed
    return config


def parse(name: str, kind: Any, value: Any) -> Any:
    """`value`, from the command line or JSON, as `kind`; SettingError says what was expected."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise SettingError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
            if (isinstance(value, str) or number == value) and abs(number) < float("inf"):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind is str and isinstance(value, str):
        return value
    raise SettingError(f"{name} must be {words[kind]}; got {value!r}")


def check(config: Config) -> Config:
    """The config itself if its values fit together; SettingError with the first that does not."""
    data, model, tokenizer = config.data, config.model, config.tokenizer
    objective, optimizer, evaluate = config.objective, config.optimizer, config.evaluate
    finetune = config.finetune
    values = 3 * model.patch**2
    rules = least_rules(config)
    if all(holds for holds, _ in rules):
        conv = tokenizer.kind == "conv-vae"
        rows = optimizer.batch // optimizer.accumulate * (data.image_size // model.patch) ** 2
        rules += [
            (config.seed < 2**64, f"seed must be below 2^64; got {config.seed}"),
            (
                config.speed.workers <= MOST_WORKERS,
                f"speed.workers must be at most {MOST_WORKERS:,}; got {config.speed.workers}",
            ),
            (
                data.image_size <= MOST_SIDE,
                f"data.image_size must be at most {MOST_SIDE:,}; got {data.image_size:,}",
            ),
            (
                data.image_size % model.patch == 0,
                f"data.image_size must be a multiple of model.patch ({model.patch}); got "
                f"{data.image_size}",
            ),
            (
                tokenizer.kind == "pixel" or tokenizer.d <= values,
                f"tokenizer.d must be at most {values}, the values of a {model.patch}x"
                f"{model.patch}x3 patch; got {tokenizer.d}",
            ),
            (
                not conv or model.patch in (2, 4, 8, 16),
                f"model.patch must be 2, 4, 8 or 16 for tokenizer.kind conv-vae; got {model.patch}",
            ),
            (
                not conv or tokenizer.d % 4 == 0,
                "tokenizer.d must be a multiple of 4, the latents of a token, for tokenizer.kind "
                f"conv-vae; got {tokenizer.d}",
            ),
            (
                not conv or tokenizer.channels % 4 == 0,
                f"tokenizer.channels must be a multiple of 4; got {tokenizer.channels}",
            ),
            (
                not conv or (objective.input, objective.target) == ("latent", "latent"),
                "tokenizer.kind conv-vae needs objective.input latent and objective.target latent; "
                f"got {objective.input} and {objective.target}",
            ),
            (
                0 <= tokenizer.adversarial_start <= 1,
                f"tokenizer.adversarial_start must be 0 to 1; got {tokenizer.adversarial_start}",
            ),
            (
                0 <= objective.label_dropout <= 1,
                f"objective.label_dropout must be 0 to 1; got {objective.label_dropout}",
            ),
            (
                model.width % model.heads == 0 and model.width % 4 == 0,
                f"model.width must be a multiple of model.heads ({model.heads}) and of 4; got "
                f"{model.width}",
            ),
            (
                optimizer.batch % optimizer.accumulate == 0,
                f"optimizer.accumulate must divide optimizer.batch ({optimizer.batch}); got "
                f"{optimizer.accumulate}",
            ),
            (
                not optimizer.float8 or model.width % 16 == 0,
                f"model.width must be a multiple of 16 for optimizer.precision "
                f"{optimizer.precision}; got {model.width}",
            ),
            (
                not optimizer.float8 or rows % 16 == 0,
                f"a pass must have a multiple of 16 tokens for optimizer.precision "
                f"{optimizer.precision}; got {rows}: change optimizer.batch or .accumulate",
            ),
            (
                objective.predict != "noise" or objective.target == "latent",
                f"objective.predict noise needs objective.target latent; got {objective.target!r}",
            ),
            (
                0 <= evaluate.t <= config.noise.levels,
                f"evaluate.t must be 0 to noise.levels ({config.noise.levels}); got {evaluate.t}",
            ),
            (
                0 <= evaluate.cut <= model.depth + model.decoder_depth,
                f"evaluate.cut must be 0 to {model.depth + model.decoder_depth}, the number of "
                f"blocks; got {evaluate.cut}",
            ),
            (
                0 <= optimizer.warmup <= 1,
                f"optimizer.warmup must be 0 to 1; got {optimizer.warmup}",
            ),
            (0 < data.min_crop <= 1, f"data.min_crop must be above 0, to 1; got {data.min_crop}"),
            (
                all(0 <= b < 1 for b in (optimizer.beta1, optimizer.beta2, optimizer.ema)),
                "optimizer.beta1, beta2 and ema must be at least 0 and below 1; got "
                f"{(optimizer.beta1, optimizer.beta2, optimizer.ema)}",
            ),
            (
                config.speed.compile != "graph" or optimizer.accumulate == 1,
                "speed.compile graph keeps one step's gradients, so it needs optimizer.accumulate "
                f"1; got {optimizer.accumulate}",
            ),
            *masking_rules(config),
            *finetune_rules(finetune),
            (
                evaluate.knn_temperature > 0,
                f"evaluate.knn_temperature must be above 0; got {evaluate.knn_temperature}",
            ),
        ]
    for holds, problem in rules:
        if not holds:
            raise SettingError(problem)
    return config


def least_rules(config: Config) -> list[tuple[bool, str]]:
    """(whether it holds, what to say where it does not) of each setting's least number."""
    rules = []
    for name, value, about in settings(config):
        if about["least"] is not None:
            wanted = "not be negative" if about["least"] == 0 else f"be {about['least']} or more"
            rules.append((value >= about["least"], f"{name} must {wanted}; got {value}"))
    return rules


def masking_rules(config: Config) -> list[tuple[bool, str]]:
    """(whether it holds, what to say where it does not) of masked autoencoding's settings."""
    model, objective, evaluate = config.model, config.objective, config.evaluate
    if objective.predict != "masked":
        return [
            (
                model.decoder_width == 0,
                "model.decoder_width is for objective.predict masked, else the decoder is as wide "
                f"as the encoder; got {model.decoder_width}",
            )
        ]
    width, blocks = model.decoder_width or model.width // 2, model.depth
    return [
        (
            0 < objective.mask_ratio < 1,
            f"objective.mask_ratio must be above 0 and below 1; got {objective.mask_ratio}",
        ),
        (
            config.data.image_size > model.patch,
            f"an image must have several patches to hide some; got one of {model.patch} pixels",
        ),
        (
            width % model.heads == 0 and width % 4 == 0,
            f"model.decoder_width must be a multiple of model.heads ({model.heads}) and of 4; got "
            f"{width}",
        ),
        (
            (objective.input, objective.target) == ("image", "image"),
            "objective.predict masked needs objective.input and .target image; got "
            f"{objective.input!r} and {objective.target!r}",
        ),
        (
            not config.optimizer.float8,
            f"optimizer.precision {config.optimizer.precision} is for denoising; masking takes "
            "bfloat16 or float32",
        ),
        (
            not model.conditional,
            "model.conditional true is for denoising; masking needs no class: set it to false",
        ),
        (
            evaluate.input != "noisy",
            "evaluate.input noisy is for denoising; with masked patches take raw or pca",
        ),
        (
            evaluate.cut <= blocks,
            f"evaluate.cut must be 0 to {blocks}, the encoder's blocks, with masked patches; got "
            f"{evaluate.cut}",
        ),
    ]


def finetune_rules(finetune: FinetuneConfig) -> list[tuple[bool, str]]:
    """(whether it holds, what to say where it does not) of each range in the group."""
    f = finetune
    below_one = {"beta1": f.beta1, "beta2": f.beta2, "ema": f.ema, "drop_path": f.drop_path,
                 "smoothing": f.smoothing}  # fmt: skip
    rules = [
        (0 <= v < 1, f"finetune.{n} must be at least 0 and below 1; got {v}")
        for n, v in below_one.items()
    ]
    return [
        *rules,
        (0 < f.min_crop <= 1, f"finetune.min_crop must be above 0, to 1; got {f.min_crop}"),
        (0 <= f.layer_decay <= 1, f"finetune.layer_decay must be 0 to 1; got {f.layer_decay}"),
        (0 <= f.warmup <= 1, f"finetune.warmup must be 0 to 1; got {f.warmup}"),
        (0 <= f.randaugment <= 10, f"finetune.randaugment must be 0 to 10; got {f.randaugment}"),
        (
            f.accumulate >= 1 and f.batch % f.accumulate == 0,
            f"finetune.accumulate must divide finetune.batch ({f.batch}); got {f.accumulate}",
        ),
    ]


CONV = tuple(f"tokenizer.{name}" for name in (
    "channels", "steps", "batch", "lr", "reconstruction", "kl", "perceptual", "adversarial",
    "adversarial_start", "vgg", "classifier_steps"))  # fmt: skip


def decides_results(name: str) -> bool:
    """Whether another value of this setting would train another network."""
    return name.split(".")[0] not in NO_RESULT and name != "optimizer.accumulate"


def idle(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Those of the settings that decide nothing in a pre-training run, each with the reason."""
    objective, tokenizer, model = config.objective, config.tokenizer, config.model
    masked, kind = objective.predict == "masked", tokenizer.kind
    reasons = [
        (masked, ("noise.", "objective.level_weight", "objective.rest_weight"),
         "where patches are hidden and no noise is added"),
        (not masked, ("objective.mask",), "where no patch is hidden"),
        (not model.conditional, ("objective.label_dropout", "model.classes"),
         "where the network is told no class"),
        (objective.target != "image", ("objective.rest_weight",),
         f"with objective.target {objective.target}"),
        (config.noise.schedule != "single", ("noise.single_sigma",),
         f"with noise.schedule {config.noise.schedule}"),
        (config.noise.schedule == "single", ("noise.levels",), "with noise.schedule single"),
        (bool(tokenizer.file), ("tokenizer.patches", "tokenizer.scale", *CONV),
         "with tokenizer.file, which has its own"),
        (not tokenizer.perceptual, ("tokenizer.vgg",), "with tokenizer.perceptual 0"),
        (not tokenizer.perceptual or bool(tokenizer.vgg), ("tokenizer.classifier_steps",),
         "where no classifier is trained"),
        (not tokenizer.adversarial, ("tokenizer.adversarial_start",),
         "with tokenizer.adversarial 0"),
        (kind != "conv-vae", CONV, f"with tokenizer.kind {kind}"),
        (kind == "pixel", ("tokenizer.d",), "with tokenizer.kind pixel, whose d is all values"),
        (config.data.augment == "center" and config.evaluate.views == 1, ("data.min_crop",),
         "where nothing is cropped at random"),
        (True, ("finetune.",), "but in `ldae finetune`"),
    ]  # fmt: skip
    return {
        name: why for name in names for holds, those, why in reasons
        if holds and name.startswith(those)
    }  # fmt: skip


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(settings: dict, base: Config | None = None) -> Config:
    """A checked Config from what `to_json` wrote; unknown or ill-typed settings are refused.

    base: whose are the settings that are not there.
    """
    base = base or Config()
    if not isinstance(settings, dict):
        raise SettingError(f"a config must be a JSON object; got {type(settings).__name__}")
    flat = {"seed": settings.get("seed", base.seed)}
    for group, values in settings.items():
        if group in ("recipe", "seed"):
            continue
        if not isinstance(values, dict):
            raise SettingError(
                f"unknown setting {group!r} in the config; expected groups of settings"
            )
        flat.update({f"{group}.{key}": value for key, value in values.items()})
    recipe = str(settings.get("recipe", base.recipe))
    return check(set_values(replace(base, recipe=recipe), flat))
