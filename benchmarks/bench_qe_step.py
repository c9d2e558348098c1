"""One step of QE-STATIC against REINFORCE and against the published formulation; and its share that waits for a pool.

    python -m benchmarks.bench_qe_step [--sizes laptop base] [--device cuda] [--threads N] [--quick]

A step is: K samples of each unlabelled source, the loss of the samples and that of the labelled pairs, their gradients,
clipping, AdamW. All have the same translator, estimator, text and K, and no dropout. The peers:
    reinforce   `trainables.reinforce`, which needs scores and no gradient of the estimator.
    published   QE-EBM as its code has it: one-hot vectors of the source and straight-through probabilities of the
                translation in one matrix [R, S + T, V], through a Linear of the embedding table, in one graph with the
                cross-entropy. As there, one-hot vectors and Linear ask for gradients, which nobody reads. Samples are
                drawn as by the others. Before the clock starts it must give the same energy and gradient norm as ours.
Bar against `published`: not slower, with not more memory. (Against reinforce there is none: a gradient has its price.)

Waiting: the same step with a pool of one replica on a core of its own, in a Ray on this machine; also with the samples
of the next step drawn in the meantime (`samples_ahead`). Bar: less than 10 % of the step is spent waiting for the pool,
the rest of its work being done beside that of the translator. (`--clock process` is for the first table; here the clock
on the wall counts, and a busy machine counts as waiting.)

Memory is the peak that a step adds: on CUDA of PyTorch's allocator, on Linux of the process, a fresh one for each.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from benchmarks.bench_engine_step import made_up_text
from benchmarks.bench_estimator_gradient import memory_ratio
from benchmarks.estimators import made_up_words, write_tokenizer
from benchmarks.pools import local_ray, pool_of
from benchmarks.timing import in_fresh_process, interleaved, machine, parse, peak_added, ratio
from energymt.configuration import validate
from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding.inference import without_dropout
from energymt.decoding.sampling import possible
from energymt.models import make_translator
from energymt.models.estimator_variants import make_estimator
from energymt.optimisation import make_optimizer, optimise
from energymt.records import Batch, StepBatch
from energymt.runs import make_fabric
from energymt.semisupervised import SemiSupervised
from trainables import qe_ebm, reinforce

WAIT_BAR = 0.10
OURS, REINFORCE, PUBLISHED = "energymt", "reinforce", "published"
POOLED: dict[str, dict[str, Any]] = {"pooled": {}, "pooled, samples ahead": {"samples_ahead": True}}
RATE = 1e-7  # so small that all go on seeing the same translator


class Sizes(NamedTuple):
    """Words, variants, target tokens of the labelled part, source tokens of the unlabelled one, K, longest sample."""

    vocabulary: int
    translator: str
    estimator: str
    tokens: int
    unlabelled: int
    samples: int
    longest: int


SIZES = {
    "laptop": Sizes(4_000, "transformer-laptop", "estimator-laptop", 1024, 256, 5, 16),
    "base": Sizes(32_000, "transformer-base", "estimator-base", 1024, 256, 5, 16),
    "quick": Sizes(400, "transformer-toy", "estimator-toy", 64, 32, 2, 6),
}


def write_world(folder: Path, sizes: Sizes) -> None:
    """Made-up text, a translator to start from and an estimator of the same words."""
    words = [f"w{number}" for number in range(sizes.vocabulary - 5)]
    made_up_text(folder, words, pairs=2 * sizes.tokens)
    vocabulary = SentencePieceVocabulary.train(words, sizes.vocabulary, model_type="word")
    torch.manual_seed(1)
    make_translator(sizes.translator, vocabulary, dropout=0.0).save(folder / "start")
    (folder / "estimator").mkdir()
    write_tokenizer(folder / "estimator", made_up_words(sizes.vocabulary))
    pieces = HubVocabulary.open(folder / "estimator")
    make_estimator(sizes.estimator, pieces, "unified_metric").save(folder / "estimator")


def trainable_of(method: Any, folder: Path, sizes: Sizes, device: str, **changes: Any) -> SemiSupervised:
    """QE-STATIC or REINFORCE on that world."""
    text = {"path": str(folder / "text.tsv"), "source": "de", "target": "en"}
    values = {
        "train": text,
        "dev": {**text, "rows": 8},
        "model": {"init": str(folder / "start")},
        "quality": str(folder / "estimator"),
        "samples": sizes.samples,
        "longest_sample": sizes.longest,
        "tokens_per_step": sizes.tokens,
        "unlabelled_tokens_per_step": sizes.unlabelled,
        "tokens_per_micro_batch": 4 * sizes.tokens,
        "balance": {"kind": "constant", "weight": 1.0, "ramp": 0.0},
        "precision": "fp32",
        "device": device,
        **changes,
    }
    trainable: SemiSupervised = method.TRAINABLE(validate(method.Config, values, "the benchmark"))
    return trainable


class Ours:
    """A step of a trainable through the loop's own path."""

    def __init__(self, trainable: SemiSupervised) -> None:
        self.trainable, self.fabric = trainable, make_fabric(trainable.config)
        trainable.model.to(self.fabric.device).train()
        self.optimizer = make_optimizer(trainable.model, trainable.config.optimizer)
        begin(self.optimizer)

    def step(self, batch: StepBatch) -> dict[str, float]:
        """What the step logs."""
        (step,) = self.trainable.steps(batch)
        model, config = self.trainable.model, self.trainable.config
        return optimise(step, model, self.optimizer, self.fabric, config, batch.step, RATE)


class Published(Ours):
    """The energy of the published code, and one backward pass for both losses."""

    trainable: qe_ebm.QeEbm

    def step(self, batch: StepBatch) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        nll, energy = self.losses(batch)
        (nll + energy).backward()
        torch.nn.utils.clip_grad_norm_(self.trainable.model.parameters(), self.trainable.config.optimizer.clip_norm)
        self.optimizer.step()
        return {"train/nll": nll.item(), "train/energy": energy.item()}

    def losses(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy a token and energy a sample."""
        (labelled,), (unlabelled,) = batch.micro_batches, batch.unlabelled
        (term,) = self.trainable.labelled_losses(labelled.to(self.fabric.device))
        return term.sum / term.count, self.energies(unlabelled.to(self.fabric.device), batch.step).mean()

    def energies(self, batch: Batch, step: int) -> Tensor:
        """Of each sample, [R]."""
        model, energy = self.trainable.model, self.trainable.energy
        estimator, words = self.trainable.quality.estimator, self.trainable.text.vocabulary
        drawn = self.trainable.draw(batch, step)
        source = batch.source.select(drawn.samples.rows_R)
        with without_dropout(model):
            memory = model.encode(batch.source).select(drawn.samples.rows_R)
            logits_RTV = possible(model, model.decode(memory, drawn.ids_RT, drawn.mask_RT)[:, :-1], end=False)
        probs_RTV = logits_RTV.softmax(-1)
        hard_RTV = one_hot(drawn.ids_RT.masked_fill(~drawn.mask_RT, 0), words.size).to(probs_RTV)
        probs_RTV = (hard_RTV - probs_RTV).detach() + probs_RTV
        source_RSV = one_hot(source.ids_BS, words.size).to(probs_RTV).requires_grad_()
        weight_DV = energy.table_VD.T.detach().requires_grad_()
        emb_RJD = linear(torch.cat([source_RSV, probs_RTV], 1), weight_DV)
        length = source.ids_BS.shape[1]
        text = (emb_RJD[:, :length], source.mask_BS & (source.ids_BS != words.eos_id))
        features_RF, _ = estimator.read(*estimator.join(((emb_RJD[:, length:], drawn.mask_RT), text)))
        return -estimator.head(features_RF).squeeze(-1)

    def energy_and_norm(self, batch: StepBatch) -> tuple[float, float]:
        """The mean energy, and the norm of its gradient."""
        energy = self.losses(batch)[1]
        weights = [weight for weight in self.trainable.model.parameters() if weight.requires_grad]
        found = torch.autograd.grad(energy, weights, allow_unused=True)
        return energy.item(), math.sqrt(sum(float(part.double().square().sum()) for part in found if part is not None))


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Make its moments, which are no memory of a step."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def contestant(side: str, folder: Path, sizes: Sizes, device: str) -> Ours:
    """One of the three."""
    made = Published if side == PUBLISHED else Ours
    return made(trainable_of(reinforce if side == REINFORCE else qe_ebm, folder, sizes, device))


def batches_of(trainable: SemiSupervised) -> list[StepBatch]:
    """Steps of one micro-batch a part."""
    steps = (batch for batch in trainable.plan.iterate() if len(batch.micro_batches) == len(batch.unlabelled) == 1)
    return list(islice(steps, 8))


class Round:
    """A plan that goes through a few steps again and again; see `energymt.data.batching.Plan`."""

    def __init__(self, trainable: SemiSupervised) -> None:
        self.batches, self.encoded = batches_of(trainable), trainable.plan.encoded
        self.steps_per_epoch = len(self.batches)

    def iterate(self, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[StepBatch]:
        """For one worker."""
        for step in count(start_step):
            yield replace(self.batches[step % len(self.batches)], step=step)


def require_equal(ours: Ours, published: Published, batch: StepBatch) -> None:
    """Both must compute the same, or the ratio means nothing."""
    energy, norm = published.energy_and_norm(batch)
    report = ours.step(batch)
    for what, mine, other in (("energy", "train/energy", energy), ("gradient norm", "train/norm_unlabelled", norm)):
        if not math.isclose(report[mine], other, rel_tol=1e-3):
            raise SystemExit(f"The {what} differs: energymt {report[mine]:.6g}, published {other:.6g}.")


def memory_added(side: str, folder: Path, quick: Path, sizes: Sizes, device: str, threads: int) -> float | None:
    """MiB that a step adds at its peak."""
    torch.set_num_threads(threads)
    warm = contestant(side, quick, SIZES["quick"], device)  # what libraries load once is not counted
    warm.step(batches_of(warm.trainable)[0])
    one = contestant(side, folder, sizes, device)
    batch = batches_of(one.trainable)[0]
    return peak_added(lambda: one.step(batch), device)


def turns_of(one: Ours, keep: Callable[[dict[str, float]], object] = lambda report: None) -> Callable[[], object]:
    """One step after the other; what each logs goes to `keep`."""
    one.trainable.plan = Round(one.trainable)
    queue = one.trainable.plan.iterate()
    return lambda: keep(one.step(next(queue)))


def measure_local(folder: Path, quick: Path, sizes: Sizes, options: argparse.Namespace) -> None:
    """The table of the three."""
    sides = (OURS, REINFORCE, PUBLISHED)
    measure = memory_added if options.device == "cuda" else partial(in_fresh_process, memory_added)
    memory = {side: measure(side, folder, quick, sizes, options.device, options.threads) for side in sides}
    ones = {side: contestant(side, folder, sizes, options.device) for side in sides}
    require_equal(ones[OURS], ones[PUBLISHED], batches_of(ones[OURS].trainable)[0])
    turns = {side: turns_of(one) for side, one in ones.items()}
    seconds = interleaved(turns, options.rounds, device=options.device, clock=options.clock)
    for side, own in seconds.items():
        added = memory[side]
        print(f"{side:12}{statistics.median(own):9.3f} s{'-' if added is None else f'{added:.0f}':>9} MiB added")
    for peer in (REINFORCE, PUBLISHED):
        slower = ratio(seconds[OURS], seconds[peer])
        larger = 1 / memory_ratio(memory[peer], memory[OURS])
        bar = f", bar 1: {verdict(max(slower, larger), 1.0)}" if peer == PUBLISHED else ""
        print(f"energymt / {peer}: {slower:.2f} times the time, {larger:.2f} times the memory{bar}", flush=True)


def measure_waiting(folder: Path, sizes: Sizes, options: argparse.Namespace) -> None:
    """The share of a step with a pool that is spent waiting for it."""
    with local_ray(2 * options.threads), pool_of(folder / "estimator", options.threads, options.device) as name:
        ones = {
            side: Ours(trainable_of(qe_ebm, folder, sizes, options.device, quality=f"pool:{name}", **changes))
            for side, changes in POOLED.items()
        }
        reports: dict[str, list[dict[str, float]]] = {side: [] for side in ones}
        turns = {side: turns_of(one, reports[side].append) for side, one in ones.items()}
        turns["in process"] = turns_of(contestant(OURS, folder, sizes, options.device))
        seconds = interleaved(turns, options.rounds, device=options.device)
        for one in ones.values():
            one.trainable.close()
    for side, found in reports.items():
        shares = [report["train/wait_s"] / own for report, own in zip(found[1:], seconds[side], strict=True)]
        drawing = statistics.median(report["train/draw_s"] for report in found)
        share = statistics.median(shares)
        print(f"{side}: {ratio(seconds[side], seconds['in process']):.3f} times the time of in process")
        print(f"{side}: step {statistics.median(seconds[side]):.3f} s, of it samples {drawing:.3f} s")
        print(f"{side}: waiting / step {share:.3f}, bar {WAIT_BAR:g}: {verdict(share, WAIT_BAR)}", flush=True)


def verdict(found: float, bar: float) -> str:
    """Of a number that is to be small."""
    if math.isnan(found):
        return "unknown"
    return "met" if found <= bar else "MISSED"


def main() -> None:
    """Entry point."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["laptop"])

    options = parse(__doc__, 9, more)
    print(f"{machine(options.device)}; medians of {options.rounds} turns", flush=True)
    for name in ["quick"] if options.quick else options.sizes:
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in SIZES[name]._asdict().items())}", flush=True)
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            write_world(Path(first), SIZES[name])
            write_world(Path(second), SIZES["quick"])
            measure_local(Path(first), Path(second), SIZES[name], options)
            measure_waiting(Path(first), SIZES[name], options)


if __name__ == "__main__":
    main()
