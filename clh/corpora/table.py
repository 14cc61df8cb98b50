"""Anybody's own data: `<split>.jsonl`, `.csv` or `.parquet`, a row for each encounter.

    id        unlike all others
    text      its note; or, but not in csv, `notes`: several, each with id and text
    codes     its gold codes, a list; in csv separated by semicolons, commas or spaces
    evidence  optional, and not in csv: a list, each with code, note_id and spans, and each of
              those with start, end and text

Other columns are ignored.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from clh.corpora.example import Evidence, Example
from clh.errors import InputError
from clh.icd.tabular import load_tabular
from clh.schema import Note

_Rows = Iterator[tuple[str, dict[str, Any]]]  # where in the file, and what is there

_BATCH = 500  # rows of parquet in memory
_LONGEST_FIELD = 2**31 - 1  # characters; what csv allows by itself is less than a long stay's notes
_MARK = {b"clh.codes": b"as published"}  # on parquet with codes of whatever system and release


def read_jsonl(folder: Path, split: str) -> Iterator[Example]:
    """The encounters of `<split>.jsonl`, an object a line; codes come as the book prints them.

    Raises:
        InputError: a row cannot be used, or has a code that the release lacks.

    """
    file = _find(folder, f"{split}.jsonl")
    return _examples(file, _json_rows(file), partial(_checked, split=split))


def read_csv(folder: Path, split: str) -> Iterator[Example]:
    """The encounters of `<split>.csv`, its columns named in the first line; as `read_jsonl`."""
    file = _find(folder, f"{split}.csv")
    return _examples(file, _csv_rows(file), partial(_checked, split=split))


def read_parquet(folder: Path, split: str) -> Iterator[Example]:
    """The encounters of `<split>.parquet`; as `read_jsonl`.

    What `write_parquet` wrote is read as it is, with codes of whatever system and release.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = _find(folder, f"{split}.parquet")
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is no whole parquet file: write it again") from error
    parse = _as_written if _MARK.items() <= metadata.items() else _checked
    return _examples(file, _parquet_rows(file), partial(parse, split=split))


def write_parquet(examples: Iterable[Example], file: Path) -> int:
    """Write examples for `read_parquet`, whole or not at all, and say how many they were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, offset = pa.string(), pa.int64()
    span = pa.struct({"start": offset, "end": offset, "text": text})
    evidence = pa.struct({"code": text, "note_id": text, "spans": pa.list_(span)})
    schema = pa.schema(
        {
            "id": text,
            "notes": pa.list_(pa.struct({"id": text, "text": text})),
            "codes": pa.list_(text),
            "evidence": pa.list_(evidence),
        },
        metadata=_MARK,
    )
    rows = (example.model_dump(exclude={"split"}) for example in examples)
    count = 0
    unfinished = file.with_name(file.name + ".partial")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                count += len(batch)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("this is blank")
    return text


_Text = Annotated[str, AfterValidator(_not_blank)]
_Id = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_not_blank)]


class _Note(BaseModel):
    id: _Id
    text: _Text


class _Row(BaseModel):
    id: _Id
    codes: list[str]
    text: _Text | None = None
    notes: list[_Note] | None = None
    evidence: list[Evidence] | None = None

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if (self.text is None) == (self.notes is None):
            raise ValueError("give either text or notes")
        return self


def _examples(
    file: Path, rows: _Rows, parse: Callable[[dict[str, Any]], Example]
) -> Iterator[Example]:
    places: dict[str, str] = {}
    for place, record in rows:
        try:
            example = parse(record)
        except ValidationError as error:
            first = error.errors()[0]
            column = ".".join(map(str, first["loc"]))
            problem = first["msg"].removeprefix("Value error, ")
            raise InputError(
                ": ".join(filter(None, (f"{file}, {place}", column, problem)))
            ) from error
        except InputError as error:
            raise InputError(f"{file}, {place}: {error}") from error
        if example.id in places:
            before = places[example.id]
            raise InputError(
                f"{file}, {place}: the id {example.id!r} occurs twice, first in {before}"
            )
        places[example.id] = place
        yield example


def _as_written(record: dict[str, Any], split: str) -> Example:
    return Example(**record, split=split)


def _checked(record: dict[str, Any], split: str) -> Example:
    normalize = load_tabular().normalize
    row = _Row.model_validate(record)
    notes = row.notes or []
    if row.text is not None:
        notes = [_Note(id=row.id, text=row.text)]
    return Example(
        id=row.id,
        notes=tuple(Note(id=note.id, text=note.text) for note in notes),
        codes=tuple(dict.fromkeys(map(normalize, row.codes))),
        evidence=tuple(
            one.model_copy(update={"code": normalize(one.code)}) for one in row.evidence or ()
        ),
        split=split,
    )


def _json_rows(file: Path) -> _Rows:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file}, line {number} is no JSON: {error.msg} at character {error.colno}"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{file}, line {number} is no JSON object: write one on each line")
        _check_columns(record, f"{file}, line {number}")
        yield f"line {number}", record


def _csv_rows(file: Path) -> _Rows:
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(_lines(file), strict=True)
    line = 1  # a record may go on for several
    try:
        header = next(rows, [])
        _check_columns(header, f"{file}, line 1", notes=False)
        line = rows.line_num + 1
        for fields in rows:
            if fields and len(fields) != len(header):
                raise csv.Error(f"{len(fields)} fields, and {len(header)} in the first line")
            if fields:
                record = dict(zip(header, fields, strict=True))
                codes = re.findall(r"[^;,\s]+", record["codes"])
                yield f"line {line}", {"id": record["id"], "text": record["text"], "codes": codes}
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{file}, line {line}: {error}: put text in double quotes, and double those within"
        ) from error


def _parquet_rows(file: Path) -> _Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _check_columns(names, str(file))
            used = [name for name in names if name in _Row.model_fields]
            for batch in table.iter_batches(_BATCH, columns=used):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged after row {number}: write it again") from error


def _check_columns(names: Iterable[str], where: str, *, notes: bool = True) -> None:
    for needed in (("id",), ("codes",), ("text", "notes") if notes else ("text",)):
        if not set(needed).intersection(names):
            raise InputError(
                f"{where}: there is no {' or '.join(needed)} among the columns "
                f"({', '.join(names) or 'none'})"
            )


def _lines(file: Path) -> Iterator[str]:
    """The lines with their ends, decoded one by one so that an error can name its line."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{file}, line {number} is not UTF-8: save it as UTF-8") from error


def _find(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.is_file():
        others = ", ".join(sorted(other.name for other in folder.glob(f"*{file.suffix}")))
        raise InputError(f"there is no {file}; the folder has {others or 'no such files'}")
    return file
