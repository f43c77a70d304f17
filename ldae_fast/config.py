"""Settings of a run: typed, frozen, grouped by effect, checked before any work is done."""

import dataclasses
import difflib
import json
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal


class SettingError(ValueError):
    """A setting that is unknown, of the wrong type or out of range, as one sentence."""


# --- What changes results -------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    image_size: int = 32  # pixels, the side that the model sees
    augment: Literal["center", "random-resized-crop"] = "center"
    flip: bool = True  # mirror half of the samples
    min_crop: float = 0.2  # smallest share of the area that a random resized crop keeps
    bad_images: Literal["replace", "raise"] = "replace"


@dataclass(frozen=True)
class TokenizerConfig:
    kind: Literal["pca", "pixel", "patch-ae", "patch-vae", "conv-vae"] = "pca"
    d: int = 16  # latent values per token
    scale: Literal["global", "whiten", "none"] = "whiten"
    patches: int = 200_000  # random patches that it is fitted on
    file: str = ""  # a fitted tokenizer to take instead
    # The others are of the convolutional kind, which is trained by gradient on whole images.
    channels: int = 16  # of the first level
    steps: int = 1000
    batch: int = 64
    lr: float = 1e-3
    kl: float = 1e-6  # weights of the loss's terms beside L1
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_start: float = 0.5  # share of the training after which that term is on
    vgg: str = ""  # torchvision's VGG16 for the perceptual term; else a classifier trained here
    classifier_steps: int = 1000


@dataclass(frozen=True)
class NoiseConfig:
    schedule: Literal["ddpm", "linear", "unscaled", "single"] = "unscaled"
    levels: int = 1000
    single_sigma: float = 0.5773502691896258  # sqrt(1/3)


@dataclass(frozen=True)
class ModelConfig:
    patch: int = 4  # pixels, the side of a token
    width: int = 192
    depth: int = 3  # encoder blocks
    decoder_depth: int = 3
    decoder_width: int = 0  # where patches are masked; 0 is half the encoder's
    heads: int = 3
    mlp_ratio: int = 4
    gates: bool = True  # adaLN-Zero gates on the residual branches
    gelu: Literal["none", "tanh"] = "none"  # exact, or the tanh approximation
    conditional: bool = False  # told the image's class in training
    classes: int = 0  # of the data, found by the run where the network is told them


@dataclass(frozen=True)
class ObjectiveConfig:
    predict: Literal["clean", "noise", "masked"] = "clean"  # masked: hidden patches (MAE)
    input: Literal["image", "latent"] = "image"  # what the network is given
    target: Literal["image", "reconstruction", "latent"] = "image"  # what it must give back
    level_weight: Literal["one", "gamma_squared", "inverse_variance"] = "inverse_variance"
    rest_weight: float = 0.1  # weight of the components that the tokenizer drops
    label_dropout: float = 0.1  # share of the samples whose class a conditional network is not told
    mask_ratio: float = 0.75  # share of the patches that are hidden
    mask_norm: bool = True  # hidden patches are predicted with zero mean and unit variance each


@dataclass(frozen=True)
class OptimizerConfig:
    batch: int = 256
    base_lr: float = 1e-4  # per 256 images: the rate is base_lr * batch / 256
    warmup: float = 0.25  # share of the run
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 0.0  # largest gradient norm; 0 is off
    ema: float = 0.9999
    accumulate: int = 1  # passes that a batch is split into
    # float8: the blocks' linears in float8 as they train, all else in bfloat16; emulated: on a CPU
    precision: Literal["auto", "float32", "bfloat16", "float8", "float8-emulated"] = "auto"

    @property
    def float8(self) -> bool:
        return self.precision.startswith("float8")


@dataclass(frozen=True)
class EvaluateConfig:
    t: int = 10  # noise level that the encoder is told
    input: Literal["raw", "pca", "noisy"] = "raw"  # clean image, its PCA round trip, or with noise
    cut: int = 0  # encoder ends after this block; 0 is the encoder's own depth
    views: int = 1  # cached views of each training image: the first is plain, others augmented
    epochs: int = 90
    batch: int = 16384  # at most; a small set uses a sixteenth of itself
    base_lr: float = 6.4e-3  # the sweep tries multiples of it
    knn_k: int = 20
    knn_temperature: float = 0.07


# --- What decides fine-tuning alone ---------------------------------------------------------------


@dataclass(frozen=True)
class FinetuneConfig:
    batch: int = 1024
    base_lr: float = 1e-3  # per 256 images: the rate is base_lr * batch / 256, 4e-3 as it stands
    warmup: float = 0.05  # share of the run: 5 epochs of 100
    weight_decay: float = 0.05  # of matrices; biases and norms have none
    beta1: float = 0.9
    beta2: float = 0.999
    ema: float = 0.9999
    layer_decay: float = 0.85  # rate of a block over that of the block above it; 0.65 for L
    drop_path: float = 0.1  # in the last block, falling to 0 in the first
    mixup: float = 0.8  # parameter of the Beta distribution that shares are drawn from; 0 is off
    cutmix: float = 1.0  # the same; of the two, one is drawn for each batch
    smoothing: float = 0.1  # of the labels
    randaugment: float = 9.0  # magnitude, up to 10; 0 is off
    min_crop: float = 0.08  # smallest share of the area that a random resized crop keeps
    flip: bool = True
    accumulate: int = 1  # parts that a batch is computed in: less memory, the same result


# --- What only changes speed or what is kept ------------------------------------------------------


@dataclass(frozen=True)
class SpeedConfig:
    compile: Literal["auto", "off", "on", "graph"] = "auto"  # auto: on a GPU; graph: captured
    recompute: bool = False  # cheap activations again in the backward pass: larger batches fit
    fold: bool = True  # fold inverse PCA into the patch embedding
    weight_copy: bool = True  # low-precision weights from the optimizer, not cast in every step
    workers: int = 2  # threads that read ahead; 0 reads in line
    cache_mb: int = 4096  # memory for decoded images


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 0  # steps; 0 saves ten times a run
    keep: int = 2  # newest checkpoints kept


@dataclass(frozen=True)
class ReportConfig:
    log_every: int = 0  # steps; 0 logs about 200 lines a run
    knn_every: int = 0  # steps; 0 probes by kNN about ten times a run
    knn_images: int = 4000  # of which a quarter ask and the rest answer


@dataclass(frozen=True)
class Config:
    """A whole run. The first seven groups and the seed decide its results, the others do not;
    finetune decides those of `ldae finetune`.
    """

    recipe: str = "ldae"
    seed: int = 0
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


GROUPS = {f.name for f in dataclasses.fields(Config) if f.name not in ("recipe", "seed")}


def setting_names() -> list[str]:
    """Every dotted name, such as model.depth."""
    config = Config()
    return ["seed"] + [
        f"{group}.{f.name}"
        for group in sorted(GROUPS)
        for f in dataclasses.fields(getattr(config, group))
    ]


def set_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with dotted settings changed; text is read as the setting's type."""
    for name, value in values.items():
        if name not in setting_names():
            near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else "; `ldae train --help` lists them"
            raise SettingError(f"unknown setting {name!r}{hint}")
        group, _, key = name.rpartition(".")
        owner = getattr(config, group) if group else config
        kind = typing.get_type_hints(type(owner))[key]
        changed = replace(owner, **{key: parse(name, kind, value)})
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
            if number == float(value) and abs(number) != float("inf"):
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
    at_least_one = {
        "data.image_size": data.image_size,
        "model.patch": model.patch,
        "model.width": model.width,
        "model.depth": model.depth,
        "model.heads": model.heads,
        "model.mlp_ratio": model.mlp_ratio,
        "tokenizer.d": tokenizer.d,
        "tokenizer.channels": tokenizer.channels,
        "tokenizer.steps": tokenizer.steps,
        "tokenizer.batch": tokenizer.batch,
        "tokenizer.classifier_steps": tokenizer.classifier_steps,
        "noise.levels": config.noise.levels,
        "optimizer.batch": optimizer.batch,
        "optimizer.accumulate": optimizer.accumulate,
        "evaluate.views": evaluate.views,
        "evaluate.epochs": evaluate.epochs,
        "evaluate.batch": evaluate.batch,
        "evaluate.knn_k": evaluate.knn_k,
        "finetune.batch": finetune.batch,
        "checkpoint.keep": config.checkpoint.keep,
    }
    not_negative = {
        "seed": config.seed,
        "model.decoder_depth": model.decoder_depth,
        "model.classes": model.classes,
        "tokenizer.lr": tokenizer.lr,
        "tokenizer.kl": tokenizer.kl,
        "tokenizer.perceptual": tokenizer.perceptual,
        "tokenizer.adversarial": tokenizer.adversarial,
        "model.decoder_width": model.decoder_width,
        "objective.rest_weight": objective.rest_weight,
        "noise.single_sigma": config.noise.single_sigma,
        "optimizer.base_lr": optimizer.base_lr,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.clip": optimizer.clip,
        "finetune.base_lr": finetune.base_lr,
        "finetune.weight_decay": finetune.weight_decay,
        "finetune.mixup": finetune.mixup,
        "finetune.cutmix": finetune.cutmix,
        "speed.workers": config.speed.workers,
        "speed.cache_mb": config.speed.cache_mb,
        "checkpoint.every": config.checkpoint.every,
        "report.log_every": config.report.log_every,
        "report.knn_every": config.report.knn_every,
        "report.knn_images": config.report.knn_images,
    }
    rules = [(v >= 1, f"{n} must be 1 or more; got {v}") for n, v in at_least_one.items()]
    rules += [(v >= 0, f"{n} must not be negative; got {v}") for n, v in not_negative.items()]
    if all(holds for holds, _ in rules):
        conv = tokenizer.kind == "conv-vae"
        rows = optimizer.batch // optimizer.accumulate * (data.image_size // model.patch) ** 2
        rules += [
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
                not tokenizer.vgg or tokenizer.perceptual > 0,
                "tokenizer.vgg needs tokenizer.perceptual above 0, the weight of the term that it "
                "is for",
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
    above_zero = {"layer_decay": f.layer_decay, "min_crop": f.min_crop}
    rules += [
        (0 < v <= 1, f"finetune.{n} must be above 0, to 1; got {v}") for n, v in above_zero.items()
    ]
    return [
        *rules,
        (0 <= f.warmup <= 1, f"finetune.warmup must be 0 to 1; got {f.warmup}"),
        (0 <= f.randaugment <= 10, f"finetune.randaugment must be 0 to 10; got {f.randaugment}"),
        (
            f.accumulate >= 1 and f.batch % f.accumulate == 0,
            f"finetune.accumulate must divide finetune.batch ({f.batch}); got {f.accumulate}",
        ),
    ]


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(settings: dict) -> Config:
    """A checked Config from what `to_json` wrote; unknown or ill-typed settings are refused."""
    if not isinstance(settings, dict):
        raise SettingError(f"a config must be a JSON object; got {type(settings).__name__}")
    flat = {"seed": settings.get("seed", 0)}
    for group, values in settings.items():
        if group in ("recipe", "seed"):
            continue
        if not isinstance(values, dict):
            raise SettingError(
                f"unknown setting {group!r} in the config; expected groups of settings"
            )
        flat.update({f"{group}.{key}": value for key, value in values.items()})
    return check(set_values(Config(recipe=str(settings.get("recipe", "ldae"))), flat))
