"""The lines of a training: names as short as they are clear."""

from energymt.console import line


def test_a_name_is_its_last_part_unless_another_ends_alike() -> None:
    values = {"dev/bleu": 1.0, "gaming/repeated": 0.5, "gaming/alarm/repeated": 1.0, "time/run_s": 9.0}
    assert line(5, 10, values) == "step      5/10  dev    bleu 1  gaming/repeated 0.5  alarm/repeated 1"


def test_a_name_that_others_go_on_from_stays_whole() -> None:
    assert "quality 1  dev/quality 2" in line(1, 2, {"quality": 1.0, "dev/quality": 2.0})
