"""Invented data in the layouts of MIMIC and of the corpora built on it.

`FIXTURES` names, for each of these datasets, what writes it into a folder, as under `data/raw`.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from clh.corpora.phenotypes import PHENOTYPES

# MIMIC-III's notes by ROW_ID.
SUMMARY = """Admission Date:  [**2101-3-4**]

History: "never better", then chest pain, with
type 2 diabetes and hypertension.

Discharge Diagnosis:
1. Pneumonia, community acquired
2. Hypertension
"""
ADDENDUM = "Addendum: acute kidney injury, resolved.\n"
LATE_ADDENDUM = "Addendum: hypertension needs a visit.\n"
RETRACTED = "Entered for another patient: lung cancer.\n"
RADIOLOGY = "CHEST (PA & LAT)\n\nRight lower lobe pneumonia.\n"
ASTHMA = "Young man with asthma.\nNo fever.\n"
STROKE = "Acute ischemic stroke; atrial fibrillation, on warfarin.\n"
OBESE = "Obesity, and depression for years.\n"


def _summary(row_id: int, subject: int, admission: int, date: str, kind: str, text: str) -> list:
    wrong = 1 if text == RETRACTED else ""
    stay = [row_id, subject, admission, date, "", "", "Discharge summary", kind, ""]
    return [*stay, wrong, text]


_NOTEEVENTS = [
    _summary(11, 1, 100001, "2101-03-19", "Addendum", LATE_ADDENDUM),
    _summary(12, 1, 100001, "2101-03-10", "Report", SUMMARY),
    _summary(13, 1, 100001, "2101-03-09", "Addendum", ADDENDUM),
    _summary(14, 1, 100001, "2101-03-11", "Report", RETRACTED),
    _summary(21, 3, 100003, "2101-05-06", "Report", ASTHMA),
    _summary(22, 7, 100004, "2101-06-07", "Report", STROKE),
    _summary(23, 2, 100002, "2101-04-05", "Report", OBESE),
    _summary(24, 2, 100002, "2101-04-06", "Addendum", ""),
    _summary(25, 5, 100005, "2101-04-06", "Report", "A seizure.\n"),
    [
        31,
        1,
        100001,
        "2101-03-05",
        "2101-03-05 09:00:00",
        "",
        "Radiology",
        "CHEST",
        "",
        "",
        RADIOLOGY,
    ],
    *(
        _summary(40 + place, 40 + place, 200000 + place, "2102-01-01", "Report", f"Stay {place}.\n")
        for place in range(12)
    ),
]
_DIAGNOSES = [
    *[(1, 100001, 10, "5849"), (1, 100001, 2, "25000"), (1, 100001, 1, "486")],
    *[(1, 100001, 3, "E8199"), (1, 100001, 4, "E849"), (1, 100001, 5, "")],
    *[(3, 100003, 1, "49390"), (3, 100003, 2, "311")],
    *[(7, 100004, 1, "43491"), (7, 100004, 2, "42731"), (7, 100004, 3, "42731")],
    *[(2, 100002, 1, "27800"), (2, 100002, 2, "311")],
    (5, 100005, 1, "78039"),  # none of the 50 most frequent
    (9, 100009, 1, "4019"),  # an admission without notes
    *((40 + place, 200000 + place, 1, "4019") for place in range(12)),
    *((40 + place, 200000 + place, 2, "2720") for place in range(9)),
]
_PROCEDURES = [(1, 100001, 1, "3893"), (1, 100001, 2, "9604"), (7, 100004, 1, "0066")]

_CAML_SPLITS = {"train": (100001, 100002, 100005, 100009), "dev": (100003,), "test": (100004,)}


def _table(file: Path, columns: str, rows: Iterable[Sequence[object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    opening = gzip.open if file.suffix == ".gz" else open
    with opening(file, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(columns.split(","))
        writer.writerows(rows)


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _lines(file: Path, lines: Iterable[object]) -> None:
    _text(file, "".join(f"{line}\n" for line in lines))


def _reproducibility_splits(file: Path, splits: dict[int, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table({"_id": list(splits), "split": list(splits.values())}), file)


def _noteevents(folder: Path) -> None:
    columns = (
        "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,"
        "TEXT"
    )
    _table(folder / "mimic-iii/NOTEEVENTS.csv.gz", columns, _NOTEEVENTS)


def _mimic_iii(folder: Path, version: str) -> None:
    _noteevents(folder)
    columns = "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE"
    for name, rows in (("DIAGNOSES_ICD", _DIAGNOSES), ("PROCEDURES_ICD", _PROCEDURES)):
        numbered = ((place, *row) for place, row in enumerate(rows, start=1))
        _table(folder / f"mimic-iii/{name}.csv.gz", columns, numbered)
    if version == "clean":
        names = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
        splits = {200000 + place: name for place, name in enumerate(names)}
        _reproducibility_splits(
            folder / "reproducibility-splits/mimiciii_clean_splits.feather", splits
        )
    else:
        for split, admissions in _CAML_SPLITS.items():
            _lines(folder / f"caml-splits/{split}_{version}_hadm_ids.csv", admissions)


def _mark(text: str, quote: str, code: str, system: str) -> dict[str, object]:
    begin = text.index(quote)
    return {
        "begin": begin,
        "end": begin + len(quote),
        "code": code,
        "code_system": system,
        "description": f"What {code} stands for",
        "type": "Human",
    }


# hadm_id -> ROW_ID and text of its notes, with what is marked in each: quote, and code by revision.
_CHARTS = {
    100001: (
        (12, SUMMARY, (("type 2 diabetes", {9: "250.00", 10: "E11.9"}),)),
        (31, RADIOLOGY, (("pneumonia", {9: "486", 10: "J18.9"}),)),
        (13, ADDENDUM, ()),
    ),
    100003: ((21, ASTHMA, (("asthma", {9: "493.90", 10: "J45.909"}),)),),
    100004: (
        (
            22,
            STROKE,
            (
                ("atrial fibrillation", {9: "427.31", 10: "I48.91"}),
                ("ischemic stroke", {9: "434.91", 10: "I63.9"}),
                ("atrial", {9: "427.31", 10: "I48.91"}),
            ),
        ),
    ),
}
_OTHER_SYSTEMS = {9: ("96.71", "ICD-9-PCS"), 10: ("5A1935Z", "ICD-10-PCS")}


def _mdace(folder: Path, setting: str, revision: int) -> None:
    _noteevents(folder)
    for split, admission in zip(("train", "val", "test"), _CHARTS, strict=True):
        _lines(folder / f"mdace/splits/{setting}/MDace-ev-{split}.csv", [admission])
    for admission, documents in _CHARTS.items():
        notes = [
            {
                "note_id": row_id,
                "category": "Discharge summary",
                "description": "Report",
                "annotations": [
                    *(
                        _mark(text, quote, codes[revision], f"ICD-{revision}-CM")
                        for quote, codes in marks
                    ),
                    _mark(text, text[:5], *_OTHER_SYSTEMS[revision]),
                    _mark(text, text[:5], "99232", "CPT"),
                ],
            }
            for row_id, text, marks in documents
        ]
        chart = {"hadm_id": admission, "comment": "", "notes": notes}
        name = f"{admission}-ICD-{revision}.json"
        _text(folder / f"mdace/data/{setting}/ICD-{revision}/1.0/{name}", json.dumps(chart))


HYPOTHERMIA = '___ yo, "found down",\nwith hypothermia.\n'
SEPSIS = "Sepsis; chronic systolic heart failure.\n"
FRACTURE = "Fall with a closed fracture of the clavicle.\n"
_IV_NOTES = [  # note_id, subject_id, hadm_id, note_type, note_seq, charttime, storetime, text
    ("10000001-AD-2", 10000001, 20000001, "AD", 2, "2180-05-08 00:00:00", "", ADDENDUM),
    ("10000001-DS-1", 10000001, 20000001, "DS", 1, "2180-05-09 00:00:00", "", HYPOTHERMIA),
    ("10000002-DS-1", 10000002, 20000002, "DS", 1, "2180-06-09 00:00:00", "", SEPSIS),
    ("10000003-DS-1", 10000003, 20000003, "DS", 1, "2180-07-09 00:00:00", "", FRACTURE),
    ("10000003-DS-2", 10000003, 20000004, "DS", 2, "2181-07-09 00:00:00", "", FRACTURE),
]
_IV_DIAGNOSES = [  # both revisions in each, so that one set of admissions serves both corpora
    *((10000001, 20000001, place, f"I502{place % 10}", 10) for place in (10, 2)),
    *[(10000001, 20000001, 1, "I10", 10), (10000001, 20000001, 3, "T68XXXA", 10)],
    *[(10000001, 20000001, 1, "4019", 9), (10000001, 20000001, 2, "E9010", 9)],
    *[(10000002, 20000002, 1, "A419", 10), (10000002, 20000002, 1, "0389", 9)],
    *[(10000003, 20000003, 1, "S42001A", 10), (10000003, 20000003, 1, "81000", 9)],
]
_IV_STAYS = [  # subject_id, hadm_id, admittime, dischtime
    (10000001, 20000001, "2180-05-06 22:23:00", "2180-05-09 12:00:00"),
    (10000002, 20000002, "2180-06-01 08:00:00", "2180-06-09 12:00:00"),
    (10000003, 20000003, "2180-07-01 08:00:00", "2180-07-09 12:00:00"),
    (10000003, 20000004, "2181-07-01 08:00:00", "2181-07-09 12:00:00"),
]


def _iv_diagnoses(folder: Path) -> None:
    columns = "subject_id,hadm_id,seq_num,icd_code,icd_version"
    _table(folder / "mimic-iv/hosp/diagnoses_icd.csv.gz", columns, _IV_DIAGNOSES)


def _mimic_iv(folder: Path, revision: int) -> None:
    _iv_diagnoses(folder)
    columns = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
    _table(folder / "mimic-iv-note/note/discharge.csv.gz", columns, _IV_NOTES)
    _reproducibility_splits(
        folder / f"reproducibility-splits/mimiciv_icd{revision}_split.feather",
        {20000001: "train", 20000002: "val", 20000003: "test", 20000004: "test"},
    )


FIRST_REPORT = "FINDINGS: mild edema.\n"
SECOND_REPORT = "FINDINGS: edema has cleared.\n"
_STUDIES = [  # subject_id, study_id, split, StudyDate, StudyTime of two images, text
    (10000001, 50000002, "train", 21800508, (213014.531, 213114.0), SECOND_REPORT),
    (10000001, 50000001, "train", 21800508, (949.5, 929.5), FIRST_REPORT),  # past midnight
    (10000001, 50000003, "train", 21800501, (101500.0, 101600.0), "Before the stay.\n"),
    (10000001, 50000004, "train", 21800601, (101500.0, 101600.0), "After the stay.\n"),
    (10000002, 50000005, "validate", 21800602, (80000, 80010), "FINDINGS: consolidation.\n"),
    # Discharged at noon, between the two images.
    (10000003, 50000006, "test", 21800709, (120050.0, 115950.0), "FINDINGS: a fracture.\n"),
    (10000003, 50000007, "test", 21810702, (120000.0, 120100.0), "Billed in no ICD-10.\n"),
]


def _mimic_cxr(folder: Path) -> None:
    _iv_diagnoses(folder)
    columns = "subject_id,hadm_id,admittime,dischtime"
    _table(folder / "mimic-iv/hosp/admissions.csv.gz", columns, _IV_STAYS)
    listing, metadata, splits = [], [], []
    for subject, study, split, date, times, report in _STUDIES:
        path = f"files/p{str(subject)[:2]}/p{subject}/s{study}.txt"
        _text(folder / "mimic-cxr" / path, report)
        listing.append((subject, study, path))
        for view, time in zip(("PA", "LATERAL"), times, strict=True):
            image = f"{study}-{view}"
            splits.append((image, study, subject, split))
            metadata.append((image, subject, study, view, date, time))
    root = folder / "mimic-cxr"
    columns = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"
    _table(root / "cxr-study-list.csv.gz", "subject_id,study_id,path", listing)
    _table(root / "mimic-cxr-2.0.0-metadata.csv.gz", columns, metadata)
    _table(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", splits)


def _snomed(folder: Path) -> None:
    root = folder / "snomed-ct"
    for notes, marks, note_id, text, quotes in (
        (
            "mimic-iv_notes_training_set.csv",
            "train_annotations.csv",
            "10000001-DS-1",
            HYPOTHERMIA,
            {"hypothermia": 386689009},
        ),
        (
            "mimic-iv_notes_test_set.csv",
            "test_annotations.csv",
            "10000002-DS-1",
            SEPSIS,
            {"heart failure": 84114007, "Sepsis": 91302008},
        ),
    ):
        _table(root / notes, "note_id,text", [(note_id, text)])
        rows = [
            (note_id, text.index(quote), text.index(quote) + len(quote), concept)
            for quote, concept in quotes.items()
        ]
        _table(root / marks, "note_id,start,end,concept_id", rows)


_DECISIONS = {  # SUBJECT_ID, HADM_ID and ROW_ID -> text, quote -> category
    "1_100001_12": (
        SUMMARY,
        {
            "chest pain, with\ntype 2 diabetes": "Category 3: Defining problem",
            "Hypertension": "Category 3: Defining problem",
            "Admission": "TBD",
        },
    ),
    "3_100003_21": (ASTHMA, {"No fever": "Category 7: Evaluating test result"}),
    "7_100004_22": (STROKE, {"on warfarin": "Category 5: Drug related"}),
}


def _meddec(folder: Path) -> None:
    _noteevents(folder)
    for split, (name, (text, quotes)) in zip(
        ("train", "val", "test"), _DECISIONS.items(), strict=True
    ):
        _lines(folder / f"meddec/splits/{split}.txt", [name])
        annotations = [
            {
                "annotation_id": str(place),
                "start_offset": str(text.index(quote)),
                "end_offset": str(text.index(quote) + len(quote)),
                "category": category,
                "decision": quote,
            }
            for place, (quote, category) in enumerate(quotes.items())
        ]
        summary = {"discharge_summary_id": f"{name}__", "annotations": annotations}
        # The publisher reads line breaks within strings, which JSON does not know.
        _text(folder / f"meddec/data/{name}.json", json.dumps(summary).replace(r"\n", "\n"))


def _phenotypes(folder: Path) -> None:
    _noteevents(folder)
    flags = [*PHENOTYPES, "NONE", "UNSURE"]
    columns = ["HADM_ID", "ROW_ID", "SUBJECT_ID", *flags, "BATCH.ID", "OPERATOR"]
    readings = [
        (100002, 23, 2, {"OBESITY", "DEMENTIA"}, "ETM"),
        (100002, 23, 2, {"OBESITY", "DEPRESSION"}, "DAG"),
        (100002, 23, 2, {"DEMENTIA", "UNSURE"}, "PAT"),
        (100001, 12, 1, {"UNSURE"}, "ETM"),
        (100003, 21, 3, {"NONE"}, "JF"),
        (100004, 22, 7, {"DEMENTIA"}, "XYZ"),
        (100004, 22, 7, {"ADVANCED.HEART.DISEASE"}, "JW"),
        (100004, 22, 7, {"CHRONIC.NEUROLOGICAL.DYSTROPHIES"}, "ETM"),
    ]
    rows = [
        (admission, row_id, subject, *(int(flag in marked) for flag in flags), 1, annotator)
        for admission, row_id, subject, marked, annotator in readings
    ]
    _table(folder / "phenotypes/ACTdb102003.csv", ",".join(columns), rows)


# Documents in no order, one of them without codes.
SPANISH = {
    "S2-1": "Mujer con asma. Sufre una caída.\n\nRadiografía de tórax normal; disnea con asma.\n",
    "S1-1": "Varón con diabetes mellitus tipo 2. Niega fiebre.\n",
    "S3-1": "Revisión sin hallazgos.\n",
}
ENGLISH = {
    "S2-1": "A woman with asthma.\nShe has a fall.\n1.\nNormal chest X-ray; dyspnea with asthma.\n",
    "S1-1": "A man with type 2 diabetes mellitus.\nHe denies fever.\n",
    "S3-1": "A check-up without findings.\n",
}
DIAGNOSES = [("S1-1", "e11.9"), ("S1-1", "r50.9"), ("S2-1", "j45.909"), ("S2-1", "w19.xxx")]
PROCEDURES = [("S2-1", "bw03zzz"), ("S2-1", "bw0")]
MARKS = [
    ("S1-1", "DIAGNOSTICO", "r50.9", "fiebre", "fiebre"),
    ("S1-1", "DIAGNOSTICO", "e11.9", "diabetes mellitus tipo 2", "diabetes mellitus tipo 2"),
    ("S2-1", "DIAGNOSTICO", "w19.xxx", "caída", "caída"),
    ("S2-1", "DIAGNOSTICO", "j45.909", "disnea asma", "disnea;asma"),
    ("S2-1", "PROCEDIMIENTO", "bw03zzz", "Radiografía de tórax", "Radiografía de tórax"),
    ("S2-1", "PROCEDIMIENTO", "bw0", "Radiografía", "Radiografía"),
]


def _offsets(document: str, pieces: str) -> str:
    """The first place of each piece in the Spanish, as the publisher spells it."""
    starts = [(SPANISH[document].index(piece), piece) for piece in pieces.split(";")]
    return ";".join(f"{start} {start + len(piece)}" for start, piece in starts)


def codiesp_train(folder: Path) -> None:
    """CodiEsp's train split."""
    for name, texts in (("text_files", SPANISH), ("text_files_en", ENGLISH)):
        (folder / "train" / name).mkdir(parents=True)
        for document, text in texts.items():
            (folder / "train" / name / f"{document}.txt").write_text(text, encoding="utf-8")
    marks = [(*mark[:4], _offsets(mark[0], mark[4])) for mark in MARKS]
    for letter, rows in (("D", DIAGNOSES), ("P", PROCEDURES), ("X", marks)):
        lines = ("\t".join(row) + "\n" for row in rows)
        (folder / "train" / f"train{letter}.tsv").write_text("".join(lines), encoding="utf-8")


FIXTURES: dict[str, Callable[[Path], None]] = {
    "mdace-inpatient-icd9": partial(_mdace, setting="Inpatient", revision=9),
    "mdace-inpatient-icd10": partial(_mdace, setting="Inpatient", revision=10),
    "mdace-profee-icd9": partial(_mdace, setting="Profee", revision=9),
    "mdace-profee-icd10": partial(_mdace, setting="Profee", revision=10),
    "mimic-iii-full": partial(_mimic_iii, version="full"),
    "mimic-iii-50": partial(_mimic_iii, version="50"),
    "mimic-iii-clean": partial(_mimic_iii, version="clean"),
    "mimic-iv-icd9": partial(_mimic_iv, revision=9),
    "mimic-iv-icd10": partial(_mimic_iv, revision=10),
    "mimic-cxr": _mimic_cxr,
    "snomed-ct": _snomed,
    "meddec": _meddec,
    "phenotypes": _phenotypes,
}
