"""One-pass decoding against the greedy and beam search of a teacher of the same size, in every engine, in turns.

    python -m benchmarks.bench_decoding [--device cuda] [--sizes small base] [--batches 1 32] [--quick]

Random weights and forced lengths: all engines read the same sources and write translations of the same lengths; an
autoregressive one makes one step more, for the end token. Lengths are those of Multi30k: at batch 1 eight sentences
one by one, at batch 32 sentences of like length, as translators sort them. The length head is counted in.
The bar, at batch 1 on one thread: ONNX Runtime int8 with length beam 1 at least 2.5 times as fast as CTranslate2 int8
greedy, and 4 times as fast as its beam 5. An engine that is not installed, or not for this device, is left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import interleaved, machine, parse, ratio
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding import autoregressive, mask_predict
from energymt.models import make_translator
from energymt.records import Source

SIZES = {
    "small": (8000, {"width": 256, "feedforward": 1024, "encoder_layers": 3, "decoder_layers": 3, "heads": 4}),
    "base": (10000, {"width": 512, "feedforward": 2048, "encoder_layers": 6, "decoder_layers": 6, "heads": 8}),
    "quick": (400, {"width": 32, "feedforward": 64, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}),
}
# Source tokens (end token included) and target tokens at the eighths of Multi30k's test_2016_flickr, 8,000 pieces.
LENGTHS = [(9, 10), (11, 11), (13, 11), (14, 14), (16, 13), (18, 16), (20, 17), (26, 24)]
LIKE_LENGTHS = (16, 14)
GREEDY, BEAM, OURS = "CTranslate2 int8, greedy", "CTranslate2 int8, beam 5", "ONNX Runtime int8, length beam 1"
BARS = {GREEDY: 2.5, BEAM: 4.0}

Task = tuple[Source, int]
"""A batch of sources and the length of its translations."""
Turn = Callable[[Source, int], object]


def tasks_of(batch: int, vocabulary_size: int) -> list[Task]:
    """What one turn translates."""
    draw = torch.Generator().manual_seed(0)

    def sources(length: int) -> Source:
        ids_BS = torch.randint(5, vocabulary_size, (batch, length), generator=draw)
        ids_BS[:, -1] = SentencePieceVocabulary.eos_id
        return Source(ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))

    lengths = LENGTHS if batch == 1 else [LIKE_LENGTHS]
    return [(sources(length), target) for length, target in lengths]


def turns_of(size: str, device: str, threads: int, folder: Path) -> dict[str, Turn]:
    """Every engine that runs on this device, by the name of its row."""
    pieces, sizes = SIZES[size]
    vocabulary = SentencePieceVocabulary.train((f"w{n}" for n in range(pieces - 5)), pieces, model_type="word")
    torch.manual_seed(1)
    teacher = make_translator("transformer-base", vocabulary, dropout=0.0, **sizes).eval()
    teacher.network.final_logits_bias[0, vocabulary.eos_id] = -1e4  # no translation ends before its greatest length
    student = make_translator("masked-base", vocabulary, dropout=0.0, **sizes).eval()
    turns = runtime_turns(teacher, student, device, threads, folder)
    teacher.to(device), student.to(device)
    return {**torch_turns(teacher, student, device), **turns}


def torch_turns(teacher: Any, student: Any, device: str) -> dict[str, Turn]:
    """transformers' `generate`, and ours in PyTorch."""

    def generate(beam: int) -> Turn:
        def turn(source: Source, length: int) -> object:
            source, steps = source.to(torch.device(device)), length + 1
            options = {"num_beams": beam, "do_sample": False, "min_new_tokens": steps, "max_new_tokens": steps}
            return teacher.network.generate(source.ids_BS, attention_mask=source.mask_BS.long(), **options).tolist()

        return turn

    def search(beam: int) -> Turn:
        return lambda source, length: autoregressive.decode(
            teacher, source.to(torch.device(device)), beam=beam, max_length=length
        )

    def one_pass(model: Any, length_beam: int) -> Turn:
        return lambda source, length: mask_predict.decode(
            model,
            source.to(torch.device(device)),
            length_beam=length_beam,
            iterations=1,
            lengths_B=[length] * len(source),
        )

    turns: dict[str, Turn] = {}
    for beam, name in ((1, "greedy"), (5, "beam 5")):
        turns[f"transformers generate, {name}"] = generate(beam)
        turns[f"PyTorch, {name}"] = search(beam)
    for precision, model in (("fp32", student), ("bf16", copy.deepcopy(student).bfloat16())):
        for length_beam in (1, 3):
            turns[f"PyTorch {precision}, length beam {length_beam}"] = one_pass(model, length_beam)
    return turns


def runtime_turns(teacher: Any, student: Any, device: str, threads: int, folder: Path) -> dict[str, Turn]:
    """CTranslate2 and ONNX Runtime."""
    turns: dict[str, Turn] = {}
    if importlib.util.find_spec("ctranslate2") is None:
        print("CTranslate2 is not installed: its rows, and the ratios to them, are left out.")
    elif device == "cuda" and not _ctranslate_sees_cuda():
        print("CTranslate2 finds no CUDA device: its rows, and the ratios to them, are left out.")
    else:
        for precision in ("fp32", "int8"):
            for beam, name in ((1, "greedy"), (5, "beam 5")):
                turn = ctranslate_turn(teacher, folder / precision, device, precision, threads, beam)
                turns[f"CTranslate2 {precision}, {name}"] = turn
    if device == "cuda":
        print("The ONNX export is made for CPUs: its rows are left out.")
    elif importlib.util.find_spec("onnxruntime") is None:
        print("ONNX Runtime is not installed: its rows are left out.")
    else:
        for precision in ("fp32", "int8"):
            for length_beam in (1, 3):
                turn = onnx_turn(student, folder / f"onnx-{precision}", precision, threads, length_beam)
                turns[f"ONNX Runtime {precision}, length beam {length_beam}"] = turn
    return turns


def _ctranslate_sees_cuda() -> bool:
    import ctranslate2

    return bool(ctranslate2.get_cuda_device_count())


def ctranslate_turn(teacher: Any, folder: Path, device: str, precision: str, threads: int, beam: int) -> Turn:
    """CTranslate2's own call, with no scores asked for: as fast as it can be."""
    from energymt.export.ctranslate import CTranslateTranslator
    from energymt.export.specification import export_ctranslate

    if not folder.is_dir():
        folder.mkdir()
        export_ctranslate(teacher, folder, int8=precision == "int8")
    translator = CTranslateTranslator(folder, threads, device)
    runtime, names = translator.runtime, translator.names

    def turn(source: Source, length: int) -> object:
        rows = [[names[token_id] for token_id in ids] for ids in source.ids_BS.tolist()]
        steps = {"min_decoding_length": length + 1, "max_decoding_length": length + 1}
        return runtime.translate_batch(rows, beam_size=beam, **steps)

    return turn


def onnx_turn(student: Any, folder: Path, precision: str, threads: int, length_beam: int) -> Turn:
    """Our export, from ids to hypotheses."""
    from energymt.export.onnx import OnnxTranslator, export_onnx

    if not folder.is_dir():
        folder.mkdir()
        export_onnx(student, folder, int8=precision == "int8")
    model = OnnxTranslator(folder, threads)
    return lambda source, length: model.search(
        source, length_beam=length_beam, iterations=1, lengths_B=[length] * len(source)
    )


def measure(turns: dict[str, Turn], tasks: list[Task], rounds: int, device: str, clock: str) -> dict[str, list[float]]:
    """Seconds of each turn, a turn being all tasks."""

    def whole(turn: Turn) -> Callable[[], object]:
        return lambda: [turn(source, length) for source, length in tasks]

    return interleaved({name: whole(turn) for name, turn in turns.items()}, rounds, 1, device, clock)


def table(seconds: dict[str, list[float]], sentences: int) -> None:
    """Milliseconds a sentence, and how many times as fast as CTranslate2 int8."""
    print(f"{'':38}{'ms/sentence':>12}{'× greedy':>10}{'× beam 5':>10}   (of CTranslate2 int8)")
    for name, own in seconds.items():
        cells = [f"{ratio(seconds[peer], own):10.2f}" if peer in seconds else f"{'-':>10}" for peer in BARS]
        print(f"{name:38}{1e3 * statistics.median(own) / sentences:12.3f}" + "".join(cells), flush=True)


def verdict(seconds: dict[str, list[float]]) -> None:
    """The bar of this benchmark."""
    for peer, bar in BARS.items():
        if peer in seconds and OURS in seconds:
            found = ratio(seconds[peer], seconds[OURS])
            print(f"{OURS}: {found:.2f} × {peer}; bar {bar}: {'met' if found >= bar else 'MISSED'}")


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--only", help="rows whose name holds this word, and those that they are compared with")


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 8, more)
    if options.quick:
        options.sizes = ["quick"]
    print(f"Decoding, {machine(options.device)}; medians of {options.rounds} turns")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            turns = turns_of(size, options.device, options.threads, Path(name))
            if options.only:
                turns = {name: turn for name, turn in turns.items() if options.only in name or name in BARS}
            for batch in options.batches:
                tasks = tasks_of(batch, SIZES[size][0])
                seconds = measure(turns, tasks, options.rounds, options.device, options.clock)
                print(f"\n{size}, batch {batch}")
                table(seconds, batch * len(tasks))
                if batch == 1 and not options.quick:
                    verdict(seconds)


if __name__ == "__main__":
    main()
