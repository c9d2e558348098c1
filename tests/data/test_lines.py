import gzip
import random
import zlib
from pathlib import Path

import pytest

from energymt.data.lines import read_lines
from energymt.errors import DataError

TEXT = "first\nsecond ü\n\nfourth"


def message(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_lines(path))
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_numbers_lines_of_plain_and_gzip_files(tmp_path: Path) -> None:
    wanted = [(1, "first"), (2, "second ü"), (3, ""), (4, "fourth")]
    for name, data in {"a.txt": TEXT.encode(), "a.txt.gz": gzip.compress(TEXT.encode())}.items():
        (tmp_path / name).write_bytes(data)
        assert list(read_lines(tmp_path / name)) == wanted


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("one\x0b\x0c\x1c\x85\u2028two\r\nthree\r\n".encode())
    assert [line for _, line in read_lines(tmp_path / "a")] == ["one\x0b\x0c\x1c\x85\u2028two", "three"]


def test_byte_order_mark_goes_only_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufefffirst\n\ufeffsecond\n".encode())
    assert [line for _, line in read_lines(tmp_path / "a")] == ["first", "\ufeffsecond"]


def test_broken_utf8_names_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"good\ngut \xfcber\nlast\n")
    text = message(tmp_path / "a")
    assert f"{tmp_path / 'a'}:2 " in text and "0xfc in column 5" in text


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_cut_gzip_names_its_last_good_line(tmp_path: Path, share: float) -> None:
    rng = random.Random(0)
    lines = ["".join(rng.choices("abcdefgh ", k=60)) for _ in range(5000)]
    whole = gzip.compress("\n".join(lines).encode())
    cut = whole[: int(len(whole) * share)]
    (tmp_path / "a.gz").write_bytes(cut)
    good = zlib.decompressobj(wbits=31).decompress(cut).count(b"\n")
    assert f"last good line is line {good};" in message(tmp_path / "a.gz")
    read = []
    with pytest.raises(DataError):
        read.extend(line for _, line in read_lines(tmp_path / "a.gz"))


def test_cut_in_the_gzip_trailer_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\ntwo\n")[:-3])
    assert "last good line is line 2;" in message(tmp_path / "a.gz")


def test_damaged_gzip_is_seen(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"one\ntwo\n" * 1000))
    data[-8] ^= 0xFF  # the checksum
    (tmp_path / "a.gz").write_bytes(data)
    assert "cut or damaged" in message(tmp_path / "a.gz")


def test_what_is_named_gz_must_be_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"plain text\n")
    assert "not gzip" in message(tmp_path / "a.gz")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.tsv.gz").touch()
    assert "did you mean train.tsv.gz?" in message(tmp_path / "trian.tsv.gz")
    assert "check the path" in message(tmp_path / "unlike-anything")
    assert f"nor does the folder {tmp_path / 'no'}" in message(tmp_path / "no" / "a.txt")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in message(tmp_path)
