"""One ENGINE optimizer step against plain PyTorch: same networks, same weights, same batches, in turns.

    python -m benchmarks.bench_engine_step [--device cuda] [--sizes small base] [--threads N] [--quick]

A step is: the student forward and backward, the frozen teacher forward and its input gradient, clipping, AdamW; about
1,024 target tokens, no dropout. Ours is the loop's own path (`trainables.engine` through `optimise`), plain is
`benchmarks.plain`. Before the clock starts, both must give the same loss and the same gradient norm.
Bar: ours takes at most 1.10 times as long.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.plain import PlainStudent, PlainTeacher, engine_loss
from benchmarks.timing import interleaved, machine, parse, ratio
from energymt.configuration import validate
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.devices import bf16_on_cpu
from energymt.models import make_translator
from energymt.optimisation import make_optimizer, optimise
from energymt.records import StepBatch
from energymt.runs import make_fabric
from trainables import engine

BAR = 1.10
RATE = 1e-6
SIZES = {
    "small": (8000, {"width": 256, "feedforward": 1024, "encoder_layers": 3, "decoder_layers": 3, "heads": 4}),
    "base": (10000, {"width": 512, "feedforward": 2048, "encoder_layers": 6, "decoder_layers": 6, "heads": 8}),
    "quick": (400, {"width": 32, "feedforward": 64, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}),
}


def made_up_text(folder: Path, words: list[str], pairs: int) -> None:
    """Sentences as long as those of Multi30k (13 words in the mean), of random words, under the columns de and en."""
    draw = random.Random(1)

    def sentence() -> str:
        return " ".join(draw.choices(words, k=min(40, max(4, round(draw.lognormvariate(2.5, 0.35))))))

    lines = [f"{sentence()}\t{sentence()}\n" for _ in range(pairs)]
    (folder / "text.tsv").write_text("de\ten\n" + "".join(lines), encoding="utf-8")


@contextmanager
def trainable_of(size: str, device: str, precision: str, tokens: int) -> Iterator[engine.Engine]:
    """ENGINE from a random student and a random teacher of that size, over a made-up vocabulary."""
    vocabulary_size, sizes = SIZES[size]
    words = [f"w{number}" for number in range(vocabulary_size - 5)]
    vocabulary = SentencePieceVocabulary.train(words, vocabulary_size, model_type="word")
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_text(folder, words, pairs=tokens)
        make_translator("transformer-base", vocabulary, dropout=0.0, **sizes).save(folder / "teacher")
        text = {"path": str(folder / "text.tsv"), "source": "de", "target": "en"}
        config = validate(
            engine.Config,
            {
                "train": text,
                "dev": {**text, "rows": 8},
                "teacher": str(folder / "teacher"),
                "model": {"variant": "masked-base", "changes": {**sizes, "dropout": 0.0}},
                "target_lengths": "reference",
                "optimizer": {"clip_norm": 10.0, "weight_decay": 0.01},
                "tokens_per_step": tokens,
                "tokens_per_micro_batch": 4 * tokens,
                "precision": precision,
                "device": device,
            },
            "the benchmark",
        )
        yield engine.Engine(config)


class Ours:
    """The loop's own path."""

    def __init__(self, trainable: engine.Engine) -> None:
        self.trainable, self.fabric = trainable, make_fabric(trainable.config)
        trainable.model.to(self.fabric.device).train()
        self.optimizer = make_optimizer(trainable.model, trainable.config.optimizer)

    def step(self, batch: StepBatch) -> tuple[float, float]:
        """One step: loss and gradient norm."""
        model, config = self.trainable.model, self.trainable.config
        for step in self.trainable.steps(batch):
            report = optimise(step, model, self.optimizer, self.fabric, config, batch.step, RATE)
        return report["train/energy"] + report["train/length"], report["train/gradient_norm"]


class Plain:
    """The same by hand."""

    def __init__(self, trainable: engine.Engine) -> None:
        self.device, config = trainable.model.device, trainable.config
        self.student = PlainStudent(trainable.model).to(self.device).train()
        self.teacher = PlainTeacher(trainable.energy.teacher).to(self.device)
        self.eos_id, self.bf16 = trainable.model.vocabulary.eos_id, config.precision == "bf16"
        self.clip_norm = config.optimizer.clip_norm
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=RATE, betas=config.optimizer.betas, eps=1e-9)

    def step(self, batch: StepBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: loss and gradient norm."""
        (micro_batch,) = batch.micro_batches
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = engine_loss(self.student, self.teacher, self.eos_id, micro_batch.to(self.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach(), norm


def measure(size: str, device: str, precision: str, rounds: int, tokens: int, clock: str) -> tuple[float, float, float]:
    """Target tokens a second of plain and of ours, and the ratio of their times."""
    with trainable_of(size, device, precision, tokens) as trainable:
        micro_batches = (micro for batch in trainable.plan.iterate() for micro in batch.micro_batches)
        batches = [StepBatch(number, 0, (micro,)) for number, micro in enumerate(islice(micro_batches, 8))]
        contestants = {"plain": Plain(trainable), "ours": Ours(trainable)}
    require_equal({name: one.step(batches[0]) for name, one in contestants.items()}, precision)
    queues = {name: cycle(batches) for name in contestants}
    turns = {name: lambda one=one, queue=queues[name]: one.step(next(queue)) for name, one in contestants.items()}
    seconds = interleaved(turns, rounds, device=device, clock=clock)
    per_step = statistics.mean(float(batch.micro_batches[0].target_mask_BT.sum()) for batch in batches)
    plain, ours = (per_step / statistics.median(seconds[name]) for name in ("plain", "ours"))
    return plain, ours, ratio(seconds["ours"], seconds["plain"])


def require_equal(found: dict[str, tuple[float, float]], precision: str) -> None:
    """Both ways must compute the same, or the ratio means nothing."""
    tolerance = 1e-3 if precision == "fp32" else 0.1
    for what, mine, other in zip(("loss", "gradient norm"), found["ours"], found["plain"], strict=True):
        if not math.isclose(float(mine), float(other), rel_tol=tolerance):
            raise SystemExit(f"The two steps differ in their {what}: ours {float(mine):.6g}, plain {float(other):.6g}.")


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "base"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 16, more)
    if options.quick:
        options.sizes = ["quick"]
    print(f"One ENGINE step (SX, ST), {machine(options.device)}; target tokens/s, medians of {options.rounds} turns")
    print(f"{'size':8}{'precision':>10}{'plain':>12}{'ours':>12}{'ours/plain (time)':>20}")
    if "bf16" in options.precisions and options.device == "cpu" and not bf16_on_cpu():
        options.precisions.remove("bf16")
        print("bf16 is left out: this processor has no instructions for it")
    for size in options.sizes:
        for precision in options.precisions:
            tokens = 64 if options.quick else 1024
            plain, ours, slower = measure(size, options.device, precision, options.rounds, tokens, options.clock)
            verdict = "" if options.quick else f"  bar {BAR:.2f}: {'met' if slower <= BAR else 'MISSED'}"
            print(f"{size:8}{precision:>10}{plain:12,.0f}{ours:12,.0f}{slower:20.3f}{verdict}", flush=True)


if __name__ == "__main__":
    main()
