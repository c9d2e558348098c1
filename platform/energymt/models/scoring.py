"""Scores of text by a quality estimator, as unbabel-comet's `predict` gives them, with every text encoded once.

Axes of this room: B lines, D width, C labels of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from energymt.data.batching import pad
from energymt.decoding.inference import inference
from energymt.errors import ConfigurationError, DataError
from energymt.models.estimator import QualityEstimator, compare

TOKENS, CPU_TOKENS = 4096, 512  # positions that go through the encoder at once; what a CPU gains by more is padding
WINDOW = 2048  # lines whose inputs are sorted by length together; vectors of no more are held at once
Ids = tuple[int, ...]
Form = tuple[str, ...]
"""The texts of one joint input, in their order."""

# XCOMET: weights of the regression scores and of the error spans, and of the labels of the three inputs (Guerreiro et
# al. 2023; the numbers are those of the released code).
XCOMET_REGRESSION: dict[Form, float] = {("mt", "src"): 0.12, ("mt", "ref"): 0.33, ("mt", "src", "ref"): 0.33}
XCOMET_LABELS: dict[Form, float] = {("mt", "src"): 0.1667, ("mt", "ref"): 0.3333, ("mt", "src", "ref"): 0.5}
XCOMET_SPANS = 0.22
PENALTIES = (0, 1, 5, 10)  # MQM points of a span by severity: none, minor, major, critical
MOST_POINTS = 25


def score_lines(
    estimator: QualityEstimator,
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    tokens_per_batch: int | None = None,
) -> list[float]:
    """One score a line, higher is better.

    A unified metric that was trained on references uses them where they are given; COMET-KIWI leaves them out.

    Args:
        estimator: any metric, on any device.
        tokens_per_batch: most positions that go through the encoder at once, padding included; an input that is longer
            goes alone. None: 512 on a CPU, where a larger batch only has more padding; else 4,096.

    Raises:
        DataError: numbers of lines that differ, or a line that is no valid text.
        ConfigurationError: no references for a metric that needs them.
    """
    texts = {"mt": translations, "src": sources} | ({} if references is None else {"ref": references})
    _check(texts)
    if references is None and needs_references(estimator):
        raise ConfigurationError(f"A {estimator.config.metric} of this kind compares with references: give them too.")
    if tokens_per_batch is None:
        tokens_per_batch = CPU_TOKENS if estimator.device.type == "cpu" else TOKENS
    score = {"regression_metric": _separate, "referenceless_regression_metric": _separate, "xcomet_metric": _explained}
    scores: list[float] = []
    with inference(estimator):
        for start in range(0, len(translations), WINDOW):
            ids: dict[str, list[Ids]] = {
                part: _tokenise(estimator, lines[start : start + WINDOW])
                for part, lines in texts.items()
                if part in estimator.config.parts
            }
            found_B = score.get(estimator.config.metric, _joint)(estimator, ids, tokens_per_batch)
            scores += found_B.float().tolist()
    return scores


def needs_references(estimator: QualityEstimator) -> bool:
    """Whether it scores no translation by its source alone."""
    return "src" not in estimator.config.parts or estimator.config.metric == "regression_metric"


def _check(texts: dict[str, Sequence[str]]) -> None:
    names = {"mt": "translation", "src": "source", "ref": "reference"}
    if len({len(lines) for lines in texts.values()}) > 1:
        counts = ", ".join(f"{len(lines):,} {names[part]}s" for part, lines in texts.items())
        raise DataError(f"Scoring takes as many lines on every side, and there are {counts}: align the files.")
    for part, lines in texts.items():
        for number, line in enumerate(lines, 1):
            try:
                line.encode("utf-8")
            except (AttributeError, UnicodeEncodeError):
                raise DataError(
                    f"The {names[part]} in line {number} is no valid text ({line!r}); correct it."
                ) from None


def _tokenise(estimator: QualityEstimator, lines: Sequence[str]) -> list[Ids]:
    """Ids of each line without special tokens, cut as COMET cuts them; `<pad>` written in a text goes, as it does."""
    tokenizer, pad_id = estimator.vocabulary.tokenizer, estimator.vocabulary.pad_id
    rows = tokenizer(list(lines), add_special_tokens=False, truncation=True, max_length=estimator.longest_text)
    return [tuple(i for i in row if i != pad_id) for row in rows["input_ids"]]


# ------------------------------------------------------------------------------------------------- one way for a metric


def _joint(estimator: QualityEstimator, ids: dict[str, list[Ids]], budget: int) -> Tensor:
    """The mean score of the joint inputs, [B]."""
    scores_FB, _ = _read_forms(estimator, ids, budget)
    return torch.stack(list(scores_FB.values())).mean(0)


def _separate(estimator: QualityEstimator, ids: dict[str, list[Ids]], budget: int) -> Tensor:
    """The score of texts that are encoded one by one, [B]."""
    words = estimator.vocabulary
    inputs = {part: [(words.bos_id, *row, words.eos_id) for row in rows] for part, rows in ids.items()}
    place, vectors_ND, _ = _read(estimator, [row for rows in inputs.values() for row in rows], budget)
    vectors = {part: vectors_ND[[place[row] for row in rows]] for part, rows in inputs.items()}
    return estimator.head(compare(vectors["mt"], vectors["src"], vectors.get("ref"))).squeeze(-1)


def _explained(estimator: QualityEstimator, ids: dict[str, list[Ids]], budget: int) -> Tensor:
    """XCOMET's score: regression scores, 1 at most, and points for error spans; [B]."""
    scores_FB, labels = _read_forms(estimator, ids, budget)
    regression, labelling = XCOMET_REGRESSION, XCOMET_LABELS
    if len(scores_FB) == 1:
        regression, labelling = {("mt", "src"): sum(XCOMET_REGRESSION.values())}, {("mt", "src"): 1.0}
    score_B = torch.stack([scores_B.clamp(max=1.0) * regression[form] for form, scores_B in scores_FB.items()]).sum(0)
    points = []
    for line, text in enumerate(ids["mt"]):
        length = len(text) + 2  # start and end tokens are labelled too
        weighted_JC = torch.stack([labels[form][line][:length] * labelling[form] for form in labels]).sum(0)
        points.append(_span_points(weighted_JC.argmax(-1).tolist()))
    return score_B + XCOMET_SPANS * (1.0 - torch.tensor(points, device=score_B.device) / MOST_POINTS)


def _span_points(labels: Sequence[int]) -> int:
    """Points for the error spans in the labels of a translation's tokens: each by the severity of its first token.

    A span that no error-free token ends is not counted, as in unbabel-comet.
    """
    points, open_span = 0, 0
    for wrong, run in groupby(labels, key=bool):
        if wrong:
            open_span = PENALTIES[next(run)]
        else:
            points, open_span = points + open_span, 0
    return min(points, MOST_POINTS)


# ------------------------------------------------------------------------------------------------ through the encoder


def _read_forms(
    estimator: QualityEstimator, ids: dict[str, list[Ids]], budget: int
) -> tuple[dict[Form, Tensor], dict[Form, list[Tensor]]]:
    """The joint inputs of every line: for each form its scores [B], and for XCOMET its label probabilities [J, C]."""
    words = estimator.vocabulary
    forms: list[Form] = [tuple(ids)]
    if len(ids) == 3:
        forms = [("mt", "src"), ("mt", "ref"), ("mt", "src", "ref")]

    def join(texts: tuple[Ids, ...]) -> Ids:
        rest = [token for text in texts[1:] for token in (words.eos_id, *text, words.eos_id)]
        return (words.bos_id, *texts[0], words.eos_id, *rest)[: estimator.longest]

    inputs = {form: [join(texts) for texts in zip(*(ids[part] for part in form), strict=True)] for form in forms}
    place, vectors_ND, labels = _read(estimator, [row for rows in inputs.values() for row in rows], budget)
    scores_N = estimator.head(vectors_ND).squeeze(-1)
    places = {form: [place[row] for row in rows] for form, rows in inputs.items()}
    return (
        {form: scores_N[chosen] for form, chosen in places.items()},
        {form: [labels[i] for i in chosen] for form, chosen in places.items()} if labels else {},
    )


def _read(
    estimator: QualityEstimator, inputs: Sequence[Ids], budget: int
) -> tuple[dict[Ids, int], Tensor, list[Tensor]]:
    """Encode each different input once: where its row is, the vectors [N, D], and XCOMET's labels, N times [J, C]."""
    different = sorted(set(inputs), key=lambda row: (-len(row), row))  # the longest first: no memory runs out late
    device = estimator.table_VD.device
    vectors, labels = [], []
    for rows in _batches(different, budget):
        ids_BJ, mask_BJ = pad(rows, estimator.vocabulary.pad_id)
        vectors_BD, labels_BJC = estimator.read(estimator.lookup(ids_BJ.to(device)), mask_BJ.to(device))
        vectors.append(vectors_BD)
        labels += [] if labels_BJC is None else list(labels_BJC.float().cpu())
    return {row: number for number, row in enumerate(different)}, torch.cat(vectors), labels


def _batches(rows: Sequence[Ids], budget: int) -> Iterator[Sequence[Ids]]:
    """Consecutive rows, the longest of which comes first."""
    start = 0
    while start < len(rows):
        size = max(1, budget // len(rows[start]))
        yield rows[start : start + size]
        start += size
