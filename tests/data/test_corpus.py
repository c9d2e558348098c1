import gzip
import json
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from energymt.data.corpus import Corpus, DataConfig, read_columns, read_corpus, write_tsv
from energymt.errors import ConfigurationError, DataError, EnergymtError

TSV = 'de\ten\nein "Hund\ta dog"\nzwei  Katzen\ttwo cats\n'
PAIRS = (['ein "Hund', "zwei  Katzen"], ['a dog"', "two cats"])


def write(path: Path, text: str) -> str:
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def failure(config: DataConfig, kind: type[EnergymtError] = DataError, **options: bool) -> str:
    with pytest.raises(kind) as caught:
        read_corpus(config, **options)
    text = str(caught.value)
    assert "\n" not in text, "one sentence"
    return text


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_has_a_header_and_no_quoting(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TSV)
    corpus = read_corpus(DataConfig(path=path, source="de", target="en"))
    assert (corpus.source, corpus.target) == PAIRS
    assert len(corpus) == 2 and path in corpus.origin and "de → en" in corpus.origin
    turned = read_corpus(DataConfig(path=path, source="en", target="de"))
    assert (turned.target, turned.source) == PAIRS


def test_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    config = DataConfig(path=write(tmp_path / "a.tsv", TSV.replace("\n", "\r\n")), source="de", target="en")
    assert read_corpus(config).target == PAIRS[1]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pair_of_text_files(tmp_path: Path, suffix: str) -> None:
    de, en = (write(tmp_path / f"a.{side}{suffix}", "\n".join(PAIRS[i]) + "\n") for i, side in enumerate(("de", "en")))
    corpus = read_corpus(DataConfig(path=de, target_path=en))
    assert (corpus.source, corpus.target) == PAIRS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_with_nested_keys(tmp_path: Path, name: str) -> None:
    records = [{"id": i, "translation": {"de": de, "en": en}} for i, (de, en) in enumerate(zip(*PAIRS, strict=True))]
    path = write(tmp_path / name, "".join(json.dumps(record) + "\n" for record in records))
    corpus = read_corpus(DataConfig(path=path, source="translation.de", target="translation.en"))
    assert (corpus.source, corpus.target) == PAIRS


def test_hub_dataset_by_name(tmp_path: Path) -> None:
    rows = [{"translation": {"de": de, "en": en}, "other": 1} for de, en in zip(*PAIRS, strict=True)]
    write(tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path=f"hub:{tmp_path}", source="translation.de", target="translation.en")
    corpus = read_corpus(config)
    assert (corpus.source, corpus.target) == PAIRS
    assert "row 0 has no column 'translation.End'; did you mean 'en'?" in failure(
        config.model_copy(update={"target": "translation.End"})
    )
    assert "did you mean 'translation'?" in failure(config.model_copy(update={"target": "translated.en"}))
    assert "split 'test'" in failure(config.model_copy(update={"split": "test"}))
    assert "no/such-dataset" in failure(config.model_copy(update={"path": "hub:no/such-dataset"}))


def test_source_alone(tmp_path: Path) -> None:
    config = DataConfig(path=write(tmp_path / "a.txt", "one\ntwo\n"))
    corpus = read_corpus(config, need_target=False)
    assert (corpus.source, corpus.target) == (["one", "two"], None)
    assert "target_path" in failure(config, ConfigurationError)
    tsv = DataConfig(path=write(tmp_path / "a.tsv", TSV), source="de")
    assert read_corpus(tsv, need_target=False).target is None
    assert "translations in target." in failure(tsv, ConfigurationError)


def test_first_rows_alone(tmp_path: Path) -> None:
    config = DataConfig(path=write(tmp_path / "a.tsv", TSV), source="de", target="en", rows=1)
    assert read_corpus(config).source == PAIRS[0][:1]


def shared(path: Path, share: float, seed: int = 1, count: int = 40) -> Corpus:
    """A share of a file of numbered pairs."""
    write(path, "de\ten\n" + "".join(f"s{row}\tt{row}\n" for row in range(count)))
    return read_corpus(DataConfig(path=str(path), source="de", target="en", share=share, share_seed=seed))


def test_a_random_share_of_the_pairs(tmp_path: Path) -> None:
    labelled = shared(tmp_path / "a.tsv", 0.2)
    rows = [int(text[1:]) for text in labelled.source]
    assert rows == [0, 6, 7, 9, 17, 22, 23, 28], "the same on every machine, in the order of the file"
    assert labelled.target == [f"t{row}" for row in rows]
    assert labelled.origin == f"share 0.2 (seed 1) of {tmp_path}/a.tsv (de → en)"
    assert shared(tmp_path / "b.tsv", 0.2).source == labelled.source
    assert shared(tmp_path / "a.tsv", 0.2, seed=2).source != labelled.source
    assert set(labelled.source) < set(shared(tmp_path / "a.tsv", 0.5).source)
    assert len(shared(tmp_path / "a.tsv", 0.5)) == 20
    whole = DataConfig(path=str(tmp_path / "a.tsv"), source="de")
    assert read_corpus(whole, need_target=False).source == [f"s{row}" for row in range(40)]
    sources = read_corpus(whole.model_copy(update={"share": 0.2}), need_target=False)
    assert (sources.source, sources.target) == (labelled.source, None)


def test_a_share_is_of_the_rows_that_are_read(tmp_path: Path) -> None:
    shared(tmp_path / "a.tsv", 1.0)
    config = DataConfig(path=str(tmp_path / "a.tsv"), source="de", target="en", share=0.5, rows=10)
    corpus, beside = read_columns(config, ["en"])
    assert corpus.source == shared(tmp_path / "b.tsv", 0.5, count=10).source
    assert [value for _, value in beside["en"]] == corpus.target, "what stands beside the text is drawn with it"
    assert [place for place, _ in beside["en"]] == [f"{config.path}:{int(text[1:]) + 2}" for text in corpus.source]


def test_a_share_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"share of 0\.01 of the 40 pairs of .*a\.tsv is none; raise share\.$"):
        shared(tmp_path / "a.tsv", 0.01)
    for share in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValidationError, match="share"):
            DataConfig(path="a.tsv", share=share)


def test_line_breaks_inside_of_a_text_become_spaces(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"de": " a\r\nb\tc ", "en": "d"}) + "\n")
    assert read_corpus(DataConfig(path=path, source="de", target="en")).source == ["a b c"]


@pytest.mark.parametrize(
    "column, hint",
    [
        ("De", "has no column 'De'; did you mean 'de'? (columns: de, en)"),
        ("english", "has no column 'english'; did you mean 'en'?"),
    ],
)
def test_wrong_column_names_the_nearest(tmp_path: Path, column: str, hint: str) -> None:
    tsv = write(tmp_path / "a.tsv", TSV)
    assert f"{tsv}:1 {hint}" in failure(DataConfig(path=tsv, source="de", target=column))
    jsonl = write(tmp_path / "a.jsonl", '{"de": "x", "en": "y"}\n{"de": "x"}\n')
    assert f"{jsonl}:1 {hint}" in failure(DataConfig(path=jsonl, source="de", target=column))
    assert f"{jsonl}:2 has no column 'en'" in failure(DataConfig(path=jsonl, source="de", target="en"))


def test_column_that_is_there_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "de\tde\na\tb\n")
    assert f"{path}:1 has the column 'de' more than once" in failure(DataConfig(path=path, source="de", target="de"))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("de\ten\na\tb\n\nc\td\n", ":3 is empty"),
        ("de\ten\na\tb\nc\n", ":3 has 1 columns and the header 2"),
        ("de\ten\na\tb\tc\n", ":2 has 3 columns and the header 2"),
        ("de\ten\na\tb\nc\t \n", ":3: column 'en' is empty"),
        ("de\ten\n\tb\n", ":2: column 'de' is empty"),
        ("de\ten\n", " holds no sentence"),
        ("", " holds no sentence"),
    ],
)
def test_malformed_tsv_names_the_line(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "a.tsv", text)
    assert path + problem in failure(DataConfig(path=path, source="de", target="en"))


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"de": "x", "en": ', "is not JSON"),
        ("", "is empty"),
        ("[1, 2]", "holds a JSON list"),
        ('{"de": "x", "en": 3}', "column 'en' holds int instead of text"),
        ('{"de": "x", "en": null}', "column 'en' holds NoneType instead of text"),
        ('{"de": "x", "en": "\\ud83d"}', "column 'en' holds half of a character"),
        ('{"de": "x", "en": ""}', "column 'en' is empty"),
    ],
)
def test_malformed_jsonl_names_the_line(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"de": "x", "en": "y"}\n' + line + "\n")
    text = failure(DataConfig(path=path, source="de", target="en"))
    assert f"{path}:2" in text and problem in text


@pytest.mark.parametrize("counts", [(3, 5), (5, 3), (0, 2), (1001, 1000)])
def test_unequal_line_counts_say_both(tmp_path: Path, counts: tuple[int, int]) -> None:
    de, en = (write(tmp_path / name, "x\n" * n) for name, n in zip(("a.de", "a.en"), counts, strict=True))
    text = failure(DataConfig(path=de, target_path=en))
    assert f"{de} has {counts[0]:,} lines and {en} has {counts[1]:,}:" in text


def test_empty_lines_of_text_files_name_their_file(tmp_path: Path) -> None:
    de, en = write(tmp_path / "a.de", "x\ny\n"), write(tmp_path / "a.en", "x\n  \n")
    assert f"{en}:2 is empty" in failure(DataConfig(path=de, target_path=en))
    assert f"{en}:2 is empty" in failure(DataConfig(path=en, target_path=de))
    for empty in (write(tmp_path / "b.txt", ""), write(tmp_path / "b.txt.gz", "")):
        assert f"{empty} holds no sentence" in failure(DataConfig(path=empty), need_target=False)


def test_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    assert "did you mean a.tsv?" in failure(DataConfig(path=str(tmp_path / "b.tsv"), source="de", target="en"))
    assert f"{tmp_path}/none does not exist" in failure(
        DataConfig(path=path, format="text", target_path=f"{tmp_path}/none")
    )


def test_format_that_cannot_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.data", TSV)
    assert ".tsv, .jsonl, .txt" in failure(DataConfig(path=path, source="de", target="en"), ConfigurationError)
    assert len(read_corpus(DataConfig(path=path, source="de", target="en", format="tsv"))) == 2
    with pytest.raises(ValidationError):
        DataConfig(path=path, format="csv")


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"source": None, "target": "en"}, "name that of the source text in source"),
        ({"source": "de", "target": "en", "target_path": "b.en", "format": "tsv"}, "not in target_path"),
        ({"source": "de", "target_path": "b.en"}, "drop source and target"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, changes: dict[str, str], problem: str) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    assert problem in failure(DataConfig(path=path, **changes), ConfigurationError)


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="colunm"):
        DataConfig(path="a.tsv", colunm="de")


def test_fingerprint_follows_every_text() -> None:
    corpora = [
        Corpus(["a", "b"], ["c", "d"], "x"),
        Corpus(["a", "b"], ["c", "e"], "x"),
        Corpus(["a", "b"], None, "x"),
        Corpus(["a b"], ["c", "d"], "x"),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == 4
    assert Corpus(["a", "b"], ["c", "d"], "elsewhere").fingerprint == corpora[0].fingerprint


def test_written_corpus_is_read_back(tmp_path: Path) -> None:
    config = DataConfig(path=str(tmp_path / "a.tsv"), source="source", target="target")
    for corpus in (Corpus(*PAIRS, "x"), Corpus(PAIRS[0], None, "x")):
        write_tsv(corpus, tmp_path / "a.tsv")
        config = config if corpus.target else config.model_copy(update={"target": None})
        found = read_corpus(config, need_target=False)
        assert (found.source, found.target, found.fingerprint) == (corpus.source, corpus.target, corpus.fingerprint)


def test_every_field_says_what_it_is() -> None:
    assert [name for name, field in DataConfig.model_fields.items() if not field.description] == []


def test_multi30k(data_folder: Path) -> None:
    started = time.perf_counter()
    files = {name: str(data_folder / "multi30k" / f"{name}.tsv.gz") for name in ("train", "val")}
    train = read_corpus(DataConfig(path=files["train"], source="de", target="en"))
    assert len(train) == len(train.target or []) == 29_000
    assert train.source[0] == "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."
    assert train.target is not None and train.target[0] == "Two young, White males are outside near many bushes."
    assert len(read_corpus(DataConfig(path=files["val"], source="fr", target="cs"))) == 1014
    assert "(columns: en, de, fr, cs)" in failure(DataConfig(path=files["val"], source="ge", target="en"))
    assert time.perf_counter() - started < 30
