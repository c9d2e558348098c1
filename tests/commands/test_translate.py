"""`energymt translate`: order, streaming, n-best lists, empty and too long lines, re-ranking, a reader that leaves."""

import re
import threading
from pathlib import Path

import pytest
import sacrebleu

from energymt.decoding.rerank import Utility
from energymt.models.scoring import score_lines
from tests import estimators
from tests.commands.conftest import STUDENT, TEACHER
from tests.terminal import SECONDS, end, quick, start

ONE_PASS = ("--iterations", "1", "--length-beam", "3")


def sentences(folder: Path, count: int = 24) -> list[str]:
    return (folder / "test.source").read_text("utf-8").splitlines()[:count]


def translations(model: str, lines: list[str], folder: Path, *options: str) -> list[str]:
    done = quick("translate", model, *options, folder=folder, stdin="".join(f"{line}\n" for line in lines))
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


@pytest.mark.parametrize("model, options", [(TEACHER, ("--beam", "2")), (STUDENT, ONE_PASS)])
def test_translations_come_in_order_and_do_not_depend_on_their_neighbours(model: str, options, shared: Path) -> None:
    lines = sentences(shared)
    found = translations(model, lines, shared, *options)
    assert len(found) == len(lines) and len(set(found)) > 1
    assert translations(model, lines[::-1], shared, *options) == found[::-1]
    assert translations(model, lines[5:6], shared, *options, "--tokens-per-batch", "1") == found[5:6]


def test_translations_are_answered_while_stdin_is_open(shared: Path) -> None:
    process = start("translate", STUDENT, *ONE_PASS, folder=shared)
    assert process.stdin is not None and process.stdout is not None
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    try:
        process.stdin.write("\n".join(sentences(shared, 16)) + "\n")
        process.stdin.flush()
        answered = [process.stdout.readline() for _ in range(16)]
        assert process.poll() is None
    finally:
        watchdog.cancel()
        done = end(process, sentences(shared, 1)[0])
    assert [line.rstrip("\n") for line in answered] == translations(STUDENT, sentences(shared, 16), shared, *ONE_PASS)
    assert done.out.splitlines() == [answered[0].rstrip("\n")]


@pytest.mark.parametrize("model, width", [(TEACHER, "--beam"), (STUDENT, "--length-beam")])
def test_n_best_lists_number_text_and_score(model: str, width: str, shared: Path) -> None:
    lines = sentences(shared, 4)
    found = translations(model, lines, shared, width, "3", "--n-best", "3", "--iterations", "1")
    parts = [re.fullmatch(r"(\d+) \|\|\| (.*) \|\|\| (-?\d+\.\d{4})", line) for line in found]
    assert all(parts)
    numbers = [int(match[1]) for match in parts if match]
    assert numbers == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    scores = [float(match[3]) for match in parts if match]
    for first in range(0, len(scores), 3):
        assert scores[first : first + 3] == sorted(scores[first : first + 3], reverse=True)
    best = [match[2] for match in parts if match][::3]
    assert best == translations(model, lines, shared, width, "3", "--iterations", "1")


@pytest.mark.parametrize("model", [TEACHER, STUDENT])
def test_a_line_without_text_has_an_empty_translation(model: str, shared: Path) -> None:
    one = sentences(shared, 1)[0]
    found = translations(model, ["", one, "   ", "\t"], shared, *ONE_PASS)
    assert [line == "" for line in found] == [True, False, True, True]
    assert translations(model, [], shared) == []


def test_line_ends_of_all_kinds(shared: Path) -> None:
    first, second = sentences(shared, 2)
    done = quick("translate", STUDENT, *ONE_PASS, folder=shared, stdin=f"{first}\r\n{second}")
    assert done.out.splitlines() == translations(STUDENT, [first, second], shared, *ONE_PASS)


def test_unknown_words_and_signs_are_translated_somehow(shared: Path) -> None:
    assert len(translations(STUDENT, ["<mask> </s> <pad>", "ein Hund \u2028 läuft", "\x00 \ufeff ⁇"], shared)) == 3


def test_a_line_that_is_too_long_is_cut_and_named(shared: Path) -> None:
    one = sentences(shared, 1)[0]
    done = quick("translate", STUDENT, *ONE_PASS, folder=shared, stdin=f"{one}\n{'zive ' * 400}\n{one}\n")
    assert done.code == 0
    assert done.err == "Line 2 has 401 tokens and the limit is 256: its end is cut off.\n"
    first, second, third = done.out.splitlines()
    assert first == third and second


def candidates_and_scores(
    judge: str, model: str, width: str, lines: list[str], folder: Path
) -> tuple[list[list[str]], list[list[float]]]:
    """Three candidates a line, and what `energymt score` says of each."""
    listed = translations(model, lines, folder, "--iterations", "1", width, "3", "--n-best", "3")
    candidates = [line.split(" ||| ")[1] for line in listed]
    (folder / "rerank.source").write_text("".join(f"{line}\n" * 3 for line in lines), "utf-8")
    (folder / "rerank.target").write_text("".join(f"{line}\n" for line in candidates), "utf-8")
    scored = quick("score", judge, "--source", "rerank.source", "--target", "rerank.target", folder=folder)
    scores = [float(line) for line in scored.out.splitlines()]
    starts = range(0, len(scores), 3)
    return [candidates[row : row + 3] for row in starts], [scores[row : row + 3] for row in starts]


def test_an_energy_chooses_the_translation_that_it_likes_best(shared: Path) -> None:
    lines = sentences(shared, 6)
    candidates, energies = candidates_and_scores(TEACHER, STUDENT, "--length-beam", lines, shared)
    wanted = [texts[values.index(min(values))] for texts, values in zip(candidates, energies, strict=True)]
    assert translations(STUDENT, lines, shared, *ONE_PASS, "--rerank", TEACHER) == wanted
    assert wanted != translations(STUDENT, lines, shared, *ONE_PASS)


@pytest.mark.parametrize("model, width, kind", [(TEACHER, "--beam", "kiwi"), (STUDENT, "--length-beam", "xcomet")])
def test_an_estimator_chooses_the_text_that_it_scores_highest(model: str, width: str, kind: str, shared: Path) -> None:
    lines, judge = sentences(shared, 6), str(estimators.converted(kind))
    candidates, scores = candidates_and_scores(judge, model, width, lines, shared)
    options = ("--iterations", "1", width, "3")
    wanted = [texts[values.index(max(values))] for texts, values in zip(candidates, scores, strict=True)]
    found = translations(model, [*lines, ""], shared, *options, "--rerank", judge)
    assert found == [*wanted, ""]
    assert wanted != translations(model, lines, shared, *options)
    best_two = translations(model, lines[:1], shared, *options, "--rerank", judge, "--n-best", "2")
    order = sorted(range(3), key=lambda row: -scores[0][row])
    assert [line.split(" ||| ")[1] for line in best_two] == [candidates[0][row] for row in order[:2]]


def by_metric(sources: list[str], translations: list[str], references: list[str]) -> list[float]:
    return score_lines(estimators.estimator("regression"), sources, translations, references)


def by_chrf(sources: list[str], translations: list[str], references: list[str]) -> list[float]:
    rows = zip(translations, references, strict=True)
    return [sacrebleu.sentence_chrf(own, [other]).score for own, other in rows]


@pytest.mark.parametrize("utility", [by_metric, by_chrf])
def test_a_metric_that_compares_chooses_by_consensus_among_samples(utility: Utility, shared: Path) -> None:
    lines, judge = sentences(shared, 4), "chrf" if utility is by_chrf else str(estimators.converted("regression"))
    drawn = ("--samples", "4", "--seed", "3")
    listed = translations(TEACHER, lines, shared, *drawn, "--n-best", "4")
    candidates = [line.split(" ||| ")[1] for line in listed]
    wanted = []
    for row, line in enumerate(lines):
        own = candidates[4 * row : 4 * row + 4]
        pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
        columns = ([line] * 12, [own[a] for a, _ in pairs], [own[b] for _, b in pairs])
        values = utility(*columns)
        means = [sum(v for v, (a, _) in zip(values, pairs, strict=True) if a == place) / 3 for place in range(4)]
        wanted.append(own[means.index(max(means))])
    assert translations(TEACHER, lines, shared, *drawn, "--rerank", judge) == wanted
    assert wanted != candidates[::4]


def test_a_reader_that_leaves_is_no_error(shared: Path) -> None:
    process = start("translate", STUDENT, *ONE_PASS, folder=shared)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("\n".join(sentences(shared) * 40) + "\n")
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert (process.wait(SECONDS), process.stderr.read()) == (0, "")
    process.stderr.close()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_line_that_is_not_utf8_is_named_and_what_stands_before_it_is_translated(shared: Path) -> None:
    lines = sentences(shared, 20)
    content = "".join(f"{line}\n" for line in lines).encode() + b"zive \xff veze\n"
    done = quick("translate", STUDENT, *ONE_PASS, folder=shared, stdin=content)
    done.refuses(4, "Line 21", "not UTF-8", "byte 6", "convert")
    assert done.out.splitlines() == translations(STUDENT, lines, shared, *ONE_PASS)


@pytest.mark.parametrize(
    "options, parts",
    [
        (["--n-best", "4", "--length-beam", "3"], ["n_best is 4", "length_beam 3", "raise length_beam"]),
        (["--rerank", STUDENT], [STUDENT, "not autoregressive"]),
        (["--samples", "3"], ["Samples", "autoregressive"]),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], parts: list[str], shared: Path) -> None:
    done = quick("translate", STUDENT, *options, folder=shared, stdin="zive\n")
    done.refuses(2, *parts)
    assert done.out == ""


def test_a_comet_checkpoint_does_not_rerank_before_it_is_imported(shared: Path, tmp_path: Path) -> None:
    comet = str(estimators.official(tmp_path / "comet", "kiwi"))
    done = quick("translate", STUDENT, "--rerank", comet, folder=shared, stdin="zive\n")
    done.refuses(5, comet, "COMET checkpoint", "energymt models import")
