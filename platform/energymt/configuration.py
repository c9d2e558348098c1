"""What every training run can be told, and how a configuration is read: file, then `--set key=value`, then checks."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from energymt.data.corpus import DataConfig
from energymt.errors import ConfigurationError
from energymt.storage import runs_root


class Section(BaseModel):
    """A part of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class VocabularyConfig(Section):
    """Where the vocabulary comes from."""

    path: str | None = None
    """Address of a model folder whose vocabulary is used as it is; None trains one on the training text."""
    size: PositiveInt = 4000
    """Pieces of a new vocabulary, shared by both languages (Multi30k: 4,000)."""
    model_type: Literal["unigram", "bpe", "word"] = "unigram"
    """SentencePiece model of a new vocabulary; `word` keeps already segmented tokens whole."""


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), which alone are trained."""

    rank: PositiveInt = 8
    """Rank of an adapter (Hu et al. §7.2: small ranks do as well as large ones)."""
    alpha: PositiveFloat = 16.0
    """An adapter's product is scaled by alpha / rank; tuning it is much like tuning the rate (Hu et al. §4.1)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of an adapter's input."""
    targets: list[str] = []
    """Ends of the names of the linear layers that get one, for example [q_proj, v_proj]; none: as peft does for the
    family (T5 and BART: queries and values), or all attention projections of a family that it does not know."""


class PromptSettings(Section):
    """A learnt prompt (Lester et al. 2021, arXiv:2104.08691), which alone is trained."""

    tokens: PositiveInt = 20
    """Vectors before every source (Lester et al. §3.2: 20 and more are enough)."""


class ModelConfig(Section):
    """Which network is trained, and from which weights."""

    variant: str = "transformer-laptop"
    """A named size; `energymt config variants` lists them."""
    changes: dict[str, float] = {}
    """Fields of that size to change, for example {dropout: 0.3}."""
    init: str | None = None
    """Address of a model folder to start from; None starts from random weights. It overrides `variant`."""
    lora: LoraSettings | None = None
    """Train low-rank adapters alone, beside the frozen weights of `init`, a Hugging Face encoder-decoder (QE-EBM
    publishes mBART-50 with bottleneck adapters); the finished model has them merged. None trains all weights."""
    prompt: PromptSettings | None = None
    """Train vectors before every source alone, of a Hugging Face encoder-decoder `init` that is frozen; rates are high
    (Lester et al.: 0.3). None trains all weights."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW with warm-up."""

    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate."""
    rates: dict[str, PositiveFloat] = {}
    """Factors of the learning rate for parameters whose names begin so (the longest such beginning counts), for example
    {encoder.: 0.07}."""
    schedule: Literal["inverse_sqrt", "constant", "linear"] = "inverse_sqrt"
    """After the warm-up: falls with 1/√step, stays, or falls linearly to 0 at the last step."""
    warmup_steps: int = Field(default=1000, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Adam's β1 and β2."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay (ENGINE: 0.01)."""
    clip_norm: PositiveFloat = 1.0
    """Largest L2 norm of the gradient."""


class TrainingConfig(Section):
    """What every trainable shares: data, vocabulary, network, optimizer, budget."""

    train: DataConfig
    """Training pairs."""
    dev: DataConfig
    """Development pairs: they choose the checkpoint."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """Vocabulary."""
    model: ModelConfig = ModelConfig()
    """The network that is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    seed: int = Field(default=1, ge=0, lt=1 << 63)
    """Seed of initial weights, batch order, dropout, masks and noise."""
    steps: PositiveInt = 10_000
    """Optimizer steps in all."""
    tokens_per_step: PositiveInt = 4096
    """Target tokens (end tokens counted) of one optimizer step, over all workers."""
    tokens_per_micro_batch: PositiveInt = 4096
    """Most tokens, padding included, that go through the network at once."""
    evaluate_every: PositiveInt = 500
    """Steps between two evaluations on dev."""
    patience: PositiveInt = 10
    """Evaluations without a better dev value after which training stops; raise it, or `steps`, to go on."""
    keep_best: PositiveInt = 1
    """Best checkpoints kept; more than one are averaged at the end, and the average stays if it is better on dev."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints to resume from."""
    log_every: PositiveInt = 50
    """Steps between two lines of the log."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA if there is any."""


C = TypeVar("C", bound=BaseModel)


def read_config(schema: type[C], file: Path | None, settings: Sequence[str] = ()) -> C:
    """The configuration of a run: the YAML file, changed by `key.sub=value` settings, checked against `schema`.

    Raises:
        ConfigurationError: unreadable file, unknown key (the nearest known one is named), impossible value.
    """
    values = {} if file is None else read_values(file)
    for setting in settings:
        apply_setting(values, setting)
    places = [str(file)] if file is not None else []
    return validate(schema, values, " and ".join(places + (["--set"] if settings else [])) or "the command line")


def read_values(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked, with ${NAME} filled in from the environment."""
    if not file.is_file():
        raise ConfigurationError(f"No configuration file at {file}; check --config.")
    try:
        values = yaml.safe_load(_expanded(file.read_text(encoding="utf-8"), file)) or {}
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is not UTF-8; convert it.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(_not_yaml(error, file)) from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}); check its rights.") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file} must hold keys and values; it holds a {type(values).__name__}.")
    return values


def _not_yaml(error: yaml.YAMLError, file: Path) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it cannot be parsed"
    place = f"{file}:{mark.line + 1}" if mark is not None else str(file)
    return f"{place} is not YAML ({problem}); correct the lines up to there, perhaps their indentation or quotes."


def _expanded(text: str, file: Path) -> str:
    """Environment variables written as ${NAME} filled in; ENERGYMT_RUNS is the folder of runs where it is unset."""
    known = {**os.environ, "ENERGYMT_RUNS": str(runs_root())}

    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise ConfigurationError(f"{file} uses the environment variable {match[1]}, which is not set; export it.")
        return known[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Change `values` in place by one `key.sub=value`; the value is read as YAML."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"--set {setting!r}: write key=value, for example --set optimizer.learning_rate=1e-4.")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"--set {setting!r}: {part!r} is a single value and has no keys below it.")
    values[last] = _scalar(text)


def _scalar(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):  # 1e-4, which YAML takes for a word
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def validate(schema: type[C], values: dict[str, Any], origin: str) -> C:
    """`values` as a `schema`; a pydantic error becomes one sentence."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(schema, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}."
            raise ConfigurationError(f"Unknown key {key!r} in {origin}: {hint}") from None
        if first["type"] == "missing":
            raise ConfigurationError(
                f"The key {key!r} is missing in {origin}; give it in the file of --config or by --set."
            ) from None
        if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # keys that do not go together
            where = f"{key!r} of {origin}" if key else origin
            raise ConfigurationError(f"Impossible values in {where}: {first['ctx']['error']}.") from None
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigurationError(f"Impossible value for {key!r} in {origin}: {first['input']!r} ({message}).") from None


def _known_keys(schema: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        if isinstance(part, int):  # a place in a list of sections
            continue
        if part not in schema.model_fields:
            return []
        inner = _section(schema.model_fields[part].annotation)
        if inner is None:
            return []
        schema = inner
    return list(schema.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be left out."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def describe_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a key: its dotted name, its default, and what its docstring says."""
    lines: list[str] = []
    for name, field in schema.model_fields.items():
        section = _section(field.annotation)
        if section is field.annotation and section is not None:
            lines += describe_keys(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        text = " ".join((field.description or "").split())
        lines.append(f"{prefix}{name} ({default}): {text}")
        # A list of what this section extends (`also`) has keys that stand above.
        lines += [] if section is None or issubclass(schema, section) else describe_keys(section, f"{prefix}{name}.")
    return lines
