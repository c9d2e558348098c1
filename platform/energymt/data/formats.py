"""How parallel text is written down: TSV, JSONL, pairs of text files, Hugging Face datasets.

Each reader yields (place, record): the place names file and line for an error, the record holds named texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

from energymt.data.lines import read_lines
from energymt.errors import DataError

Records = Iterator[tuple[str, dict[str, Any]]]


def read_tsv(path: Path, columns: Sequence[str]) -> Records:
    """Lines of a TSV file with a header; no quoting: a tab parts two columns, and a `"` is just a character."""
    header: list[str] | None = None
    for number, line in read_lines(path):
        place, fields = f"{path}:{number}", line.split("\t")
        if header is None:
            header = fields
            for column in columns:
                if header.count(column) != 1:
                    raise DataError(missing_column(place, column, column, header))
        elif len(fields) != len(header):
            problem = f"has {len(fields)} columns and the header {len(header)}" if line.strip() else "is empty"
            raise DataError(f"{place} {problem}; every line holds one text for each column, parted by tabs.")
        else:
            yield place, dict(zip(header, fields, strict=True))


def read_jsonl(path: Path) -> Records:
    """Lines that hold a JSON object each."""
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"is not JSON ({error.msg} in column {error.colno})" if line.strip() else "is empty"
            raise DataError(f"{place} {problem}; every line holds one JSON object.") from None
        if not isinstance(record, dict):
            raise DataError(f"{place} holds a JSON {type(record).__name__}; every line holds one JSON object.")
        yield place, record


def read_text(source: Path, target: Path | None, names: tuple[str, str]) -> Records:
    """Two text files, line by line, as records with two names; or the source alone."""
    if target is None:
        yield from ((f"{source}:{number}", {names[0]: line}) for number, line in _filled_lines(source))
        return
    sides = _filled_lines(source), _filled_lines(target)
    for number, pair in enumerate(zip_longest(*sides), 1):
        if None in pair:
            ended = pair.index(None)
            longest = number + sum(1 for _ in sides[1 - ended])
            lines = (number - 1, longest) if ended == 0 else (longest, number - 1)
            raise DataError(
                f"{source} has {lines[0]:,} lines and {target} has {lines[1]:,}: "
                f"line n of one must translate line n of the other."
            )
        yield f"{source}:{number}", {name: line for name, (_, line) in zip(names, pair, strict=True)}


def _filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        if not line.strip():
            raise DataError(f"{path}:{number} is empty; remove the sentence and its translation, or fill it.")
        yield number, line


def read_hub(name: str, subset: str | None, split: str, columns: Sequence[str]) -> Records:
    """Rows of a Hugging Face dataset; `name` is an id or a local folder."""
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise DataError(f"The split {split!r} of the dataset {name} cannot be loaded: {reason}.") from None
    needed = {column if column in rows.column_names else column.split(".")[0] for column in columns}
    if needed <= set(rows.column_names):  # images and sound beside the text need not be decoded
        rows = rows.select_columns(sorted(needed))
    for number, record in enumerate(rows):
        yield f"{name} ({split}) row {number}", record


def pick(record: dict[str, Any], name: str, place: str) -> str:
    """The text under a name, or under `outer.inner`; never empty, and on one line.

    Raises:
        DataError: no such name (the nearest is named), something else than text, an empty text, broken Unicode.
    """
    value = find(record, name, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: column {name!r} holds {type(value).__name__} instead of text; name another column.")
    if re.search("[\ud800-\udfff]", value):
        raise DataError(f"{place}: column {name!r} holds half of a character (a lone surrogate); correct this text.")
    text = re.sub(r"[\t\r\n]+", " ", value.strip())
    if not text:
        raise DataError(f"{place}: column {name!r} is empty; remove the pair, or fill it.")
    return text


def find(record: dict[str, Any], name: str, place: str) -> Any:
    """What stands under a name, or under `outer.inner`; a DataError names the nearest if there is no such name."""
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(missing_column(place, name, part, list(value) if isinstance(value, dict) else []))
        value = value[part]
    return value


def missing_column(place: str, name: str, part: str, known: Sequence[str]) -> str:
    """The sentence about a name of which `part` is not among the known ones, or there twice."""
    if part in known:
        return f"{place} has the column {name!r} more than once; rename all but one."
    by_lower = {key.lower(): key for key in known}
    near = get_close_matches(part.lower(), by_lower, n=1, cutoff=0.0)
    if not near:
        return f"{place} has no column {name!r}; there is no named text at all."
    return f"{place} has no column {name!r}; did you mean {by_lower[near[0]]!r}? (columns: {', '.join(known)})"
