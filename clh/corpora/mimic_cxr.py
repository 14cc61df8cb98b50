"""MIMIC-CXR: reports of chest X-rays with the diagnoses of the hospital stay they belong to."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from clh.corpora import mimic, mimic_iv
from clh.corpora.example import Example

_SPLITS = {"train": "train", "dev": "validate", "test": "test"}


def read(folder: Path, split: str) -> Iterator[Example]:
    """The hospital stays of a split, each with the reports that were written in its course.

    A study belongs to the admission of MIMIC-IV, of the same subject, within which its first image
    was taken; the gold codes are that admission's ICD-10-CM diagnoses. Other studies are left out.
    Splits are MIMIC-CXR-JPG's, which part subjects. Expects in `mimic-cxr` the unpacked reports
    (`files`), `cxr-study-list.csv.gz`, and `mimic-cxr-2.0.0-metadata.csv.gz` and
    `mimic-cxr-2.0.0-split.csv.gz`. Raises InputError for files that are missing or damaged.
    """
    times = _times(folder, split)
    stays = _stays(folder)
    listing = mimic.find(folder, "mimic-cxr/cxr-study-list.csv")
    studies = [
        (admission, times[study], study, path)
        for subject, study, path in mimic.rows(listing, "subject_id", "study_id", "path")
        if study in times
        for start, end, admission in stays[subject]
        if start <= times[study] <= end
    ]
    codes = mimic_iv.diagnoses(folder, {study[0] for study in studies}, revision=10)
    reports = (
        (admission, time, study, mimic.find(folder, f"mimic-cxr/{path}"))
        for admission, time, study, path in studies
        if admission in codes
    )
    notes = (
        (admission, time, mimic.note(report, study, mimic.text(report)))
        for admission, time, study, report in reports
    )
    yield from mimic.encounters(listing, notes, codes, split)


def _times(folder: Path, split: str) -> dict[str, str]:
    """When the first image of each study in the split was taken, as MIMIC-IV writes times."""
    table = mimic.find(folder, "mimic-cxr/mimic-cxr-2.0.0-split.csv")
    studies = {
        study for study, name in mimic.rows(table, "study_id", "split") if name == _SPLITS[split]
    }
    metadata = mimic.find(folder, "mimic-cxr/mimic-cxr-2.0.0-metadata.csv")
    times: dict[str, str] = {}
    for study, date, time in mimic.rows(metadata, "study_id", "StudyDate", "StudyTime"):
        if study in studies:
            clock = time.split(".")[0].zfill(6)  # the file drops leading zeros
            taken = f"{date[:4]}-{date[4:6]}-{date[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}"
            times[study] = min(taken, times.get(study, taken))
    return times


def _stays(folder: Path) -> defaultdict[str, list[tuple[str, str, str]]]:
    """Admission, discharge and hadm_id of the stays of each subject."""
    stays: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for subject, start, end, admission in mimic.rows(
        mimic.find(folder, "mimic-iv/hosp/admissions.csv"),
        *("subject_id", "admittime", "dischtime", "hadm_id"),
    ):
        stays[subject].append((start, end, admission))
    return stays
