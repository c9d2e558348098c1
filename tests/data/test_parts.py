"""A text of several parts, and the task prefixes that translators read before its sources."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from energymt.data.corpus import (
    Corpus,
    DataConfig,
    joined,
    parts,
    read_columns,
    read_corpus,
    sources_alone,
    task_prefixes,
    write_tsv,
)
from energymt.errors import ConfigurationError, DataError
from tests.data.test_corpus import PAIRS, TSV, failure, shared, write

GERMAN, BACK = "translate English to German: ", "translate German to English: "


def both_ways(path: str, **changes: object) -> DataConfig:
    """One file in two directions."""
    back = {"path": path, "source": "en", "target": "de", "prefix": GERMAN}
    return DataConfig(path=path, source="de", target="en", prefix=BACK, also=[back], **changes)


def test_parts_stand_one_behind_the_other_with_keys_of_their_own(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", TSV)
    jsonl = write(tmp_path / "b.jsonl.gz", json.dumps({"s": "drei", "t": "three"}) + "\n")
    de, en = write(tmp_path / "c.de", "vier\nsechs\n"), write(tmp_path / "c.en", "four\nsix\n")
    also = [{"path": jsonl, "source": "s", "target": "t"}, {"path": de, "target_path": en, "rows": 1}]
    corpus = read_corpus(DataConfig(path=tsv, source="de", target="en", also=also))
    assert corpus.source == [*PAIRS[0], "drei", "vier"] and corpus.target == [*PAIRS[1], "three", "four"]
    assert corpus.prefixes is None and corpus.inputs == corpus.source
    assert all(place in corpus.origin for place in (tsv, jsonl, de))


def test_a_translator_reads_prefixes_and_nobody_else(tmp_path: Path) -> None:
    corpus = read_corpus(both_ways(write(tmp_path / "a.tsv", TSV)))
    assert (corpus.source, corpus.target) == (PAIRS[0] + PAIRS[1], PAIRS[1] + PAIRS[0])
    assert corpus.inputs == [BACK + text for text in PAIRS[0]] + [GERMAN + text for text in PAIRS[1]]
    write_tsv(corpus, tmp_path / "b.tsv")
    assert "translate" not in (tmp_path / "b.tsv").read_text("utf-8")
    assert task_prefixes([corpus, Corpus(*PAIRS, "x")]) == {GERMAN, BACK}


def test_one_part_may_have_a_prefix_and_another_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    also = [{"path": path, "source": "en", "target": "de", "prefix": GERMAN, "rows": 1}]
    corpus = read_corpus(DataConfig(path=path, source="de", target="en", also=also))
    assert corpus.inputs == [*PAIRS[0], GERMAN + PAIRS[1][0]]


def test_the_fingerprint_is_that_of_what_a_translator_reads() -> None:
    plain, a, b = (Corpus(*PAIRS, "x", prefixes=given) for given in (None, ["a ", "b "], ["a ", "c "]))
    assert len({plain.fingerprint, a.fingerprint, b.fingerprint}) == 3
    digest = hashlib.sha256("\n".join(PAIRS[0]).encode() + b"\0" + "\n".join(PAIRS[1]).encode())
    assert plain.fingerprint == digest.hexdigest(), "what was cached before there were prefixes stays valid"


def test_each_part_has_a_share_and_columns_beside_of_its_own(tmp_path: Path) -> None:
    first = shared(tmp_path / "a.tsv", 0.2)
    second = shared(tmp_path / "a.tsv", 0.1, seed=2)
    part = {"path": str(tmp_path / "a.tsv"), "source": "en", "target": "de", "share": 0.1, "share_seed": 2}
    config = DataConfig(path=str(tmp_path / "a.tsv"), source="de", target="en", share=0.2, also=[part])
    corpus, beside = read_columns(config, ["de"])
    assert corpus.source == [*first.source, *(second.target or [])]
    assert [value for _, value in beside["de"]] == [*first.source, *second.source]
    other = DataConfig(path=write(tmp_path / "b.tsv", TSV.replace("de", "fr", 1)), source="fr", target="en")
    with pytest.raises(DataError, match=r"a\.tsv:1 has no column 'fr'"):
        read_columns(joined([other, config]), ["fr"])


def test_without_need_targets_are_read_where_all_parts_have_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    whole = both_ways(path)
    assert read_corpus(whole, need_target=False).target == PAIRS[1] + PAIRS[0]
    half = DataConfig(path=path, source="de", target="en", also=[{"path": path, "source": "en"}])
    assert read_corpus(half, need_target=False).target is None
    assert "name that of the translations" in failure(half, ConfigurationError)
    de, en = write(tmp_path / "c.x", "vier\n"), write(tmp_path / "c.y", "four\n")
    text = DataConfig(path=path, source="de", target="no", also=[{"path": de, "target_path": en, "prefix": GERMAN}])
    alone = read_corpus(sources_alone(text), need_target=False)
    assert alone.target is None and alone.inputs == [*PAIRS[0], f"{GERMAN}vier"]


def test_what_is_wrong_in_a_part_is_said_of_that_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    for part, problem in (
        ({"path": str(tmp_path / "b.tsv"), "source": "de", "target": "en"}, "did you mean a.tsv?"),
        ({"path": path, "source": "de", "target": "em"}, "did you mean 'en'?"),
        ({"path": path, "source": "de", "target": "en", "share": 0.1}, "A share of 0.1 of the 2 pairs"),
    ):
        assert problem in failure(DataConfig(path=path, source="de", target="en", also=[part]))
    for wrong in ({"path": path, "segmented": True}, {"source": "de"}, {"path": path, "also": []}):
        with pytest.raises(ValidationError):
            DataConfig(path=path, also=[wrong])


def test_the_parts_of_a_text_make_it_up_again(tmp_path: Path) -> None:
    config = both_ways(write(tmp_path / "a.tsv", TSV), max_source_tokens=9)
    found = parts(config)
    assert [(part.prefix, part.max_source_tokens, part.also) for part in found] == [(BACK, 9, []), (GERMAN, 9, [])]
    assert joined(found) == config and joined(found[1:]) == found[1]
