"""Groupers and the Medicare Code Editor's lists, in files of the publisher's layout."""

import gzip
import json
from pathlib import Path

import pytest

from clh.errors import InputError
from clh.icd import groupers
from clh.icd.edits import read_edits
from clh.icd.rules import Claim, CodeBook, Encounter, check
from tests.fakes import toy_guidelines, toy_system

TABLE_6K = """\
TABLE 6K - COMPLETE LIST OF CC EXCLUSIONS

K Part 1: List of CC and Major CC Codes
 I10 Dx  Lev PDX Exclusions   ICD-10-CM Description
 A419    MCC 0002:2 codes     Sepsis, unspecified organism
 N179    CC  0003:1 code      Acute kidney failure, unspecified
 D89833  CC  No Excl          Cytokine release syndrome, grade 3

PDX collection 0002
  A400    Sepsis due to streptococcus, group A
  A419    Sepsis, unspecified organism

PDX collection 0003
  N170    Acute kidney failure with tubular necrosis
K Part 2: Codes that are CC or Major CC only if patient discharged alive

  I462    Cardiac arrest due to underlying cardiac condition
"""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_cc_counts_unless_the_first_code_excludes_it(tmp_path: Path, zipped: bool) -> None:
    data = TABLE_6K.encode()
    if zipped:
        (tmp_path / "cc_exclusions.txt.gz").write_bytes(gzip.compress(data))
    else:
        (tmp_path / "cc_exclusions.txt").write_bytes(data)
    group = groupers.load({"cc": tmp_path})["cc"]
    assert group(["I10", "A41.9", "N17.9", "D89.833"]) == {
        "A41.9": "MCC",
        "N17.9": "CC",
        "D89.833": "CC",
    }
    assert group(["A40.0", "A41.9", "N17.9"]) == {"N17.9": "CC"}
    assert group(["N17.0", "N17.9", "I46.2"]) == {}
    assert group(["A41.9"]) == {}  # the first code is no complication of itself
    assert group([]) == {}


def hcc_files(folder: Path) -> None:
    (folder / "ra_dx_to_cc_2026.csv").write_text(
        "diagnosis_code,cc,model_name\n"
        "E1122,37,CMS-HCC Model V28\n"
        "E119,38,CMS-HCC Model V28\n"
        "E1122,18,CMS-HCC Model V24\n"
        "E1122,18,CMS-HCC ESRD Model V24\n"
    )
    (folder / "ra_labels_2026.csv").write_text(
        "cc,label,model_domain,model_version,model_fullname\n"
        'HCC37,"Diabetes, with Complications",CMS-HCC,V28,x\n'
        "HCC38,Diabetes,CMS-HCC,V28,x\n"
        "HCC18,Complicated Diabetes,CMS-HCC,V24,x\n"
    )
    (folder / "ra_hierarchies_2026.csv").write_text(
        "cc_parent,cc_child,model_domain,model_version,model_fullname\n"
        "37,38,CMS-HCC,V28,x\n"
        "18,19,CMS-HCC,V24,x\n"
    )


def test_of_a_hierarchy_the_highest_category_counts(tmp_path: Path) -> None:
    hcc_files(tmp_path)
    group = groupers.load({"hcc-v28": tmp_path})["hcc-v28"]
    assert group(["E11.9", "I10"]) == {"E11.9": "HCC 38, Diabetes"}
    assert group(["E11.9", "E11.22"]) == {"E11.22": "HCC 37, Diabetes, with Complications"}
    older = groupers.load({"hcc-v24": tmp_path})["hcc-v24"]
    assert older(["E11.9", "E11.22"]) == {"E11.22": "HCC 18, Complicated Diabetes"}


def test_codes_exempt_from_poa(tmp_path: Path) -> None:
    (tmp_path / "poa_exempt.txt").write_text("1\tZ79.4\tinsulin\n2\tZ38.00\tliveborn\n")
    group = groupers.load({"poa-exempt": tmp_path})["poa-exempt"]
    assert group(["E11.9", "Z79.4"]) == {"Z79.4": "exempt from POA"}


@pytest.mark.parametrize("name", ["cc", "hcc-v28", "poa-exempt"])
def test_files_that_are_missing_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        groupers.load({name: tmp_path})


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    hcc_files(tmp_path)
    (tmp_path / "ra_labels_2026.csv").write_text("category,label\n")
    with pytest.raises(InputError, match=r"ra_labels_2026\.csv has no column cc"):
        groupers.load({"hcc-v28": tmp_path})
    whole = gzip.compress(TABLE_6K.encode())
    (tmp_path / "cc_exclusions.txt.gz").write_bytes(whole[:20] + b"?" + whole[21:])
    with pytest.raises(InputError, match=r"cannot read .*cc_exclusions\.txt\.gz"):
        groupers.load({"cc": tmp_path})


def test_a_grouper_that_nobody_has_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'drg': choose from cc, hcc-v24, hcc-v28, poa-exempt"):
        groupers.load({"drg": tmp_path})


def test_a_file_that_is_not_table_6k_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "cc_exclusions.txt").write_text("hello\n")
    with pytest.raises(InputError, match="is not Table 6K"):
        groupers.load({"cc": tmp_path})


MCE = {
    "codes": {
        "unacceptable_pdx": [{"code": "R059"}],
        "manifestation_not_pdx": [],
        "unacceptable_pdx_unless_secondary": [{"code": "I10"}],
        "age_adult": [{"code": "E119"}],
    },
    "age_categories": {"adult": {"min_age": 15, "max_age": 124}},
}


@pytest.mark.parametrize(
    ("codes", "setting", "age", "found"),
    [
        (["R05.9", "I10"], "inpatient", None, ["unacceptable_principal: R05.9"]),
        (["R05.9", "I10"], "outpatient", None, []),
        (["I10", "R05.9"], "inpatient", None, []),
        (["I10"], "inpatient", None, ["unacceptable_principal: I10"]),
        (["E11.9"], "outpatient", 9, ["age: E11.9"]),
        (["E11.9"], "outpatient", 15, []),
        (["E11.9"], "outpatient", None, []),
    ],
)
def test_the_code_editor_refuses(
    tmp_path: Path, codes: list[str], setting: str, age: int | None, found: list[str]
) -> None:
    (tmp_path / "mce.json").write_text(json.dumps(MCE))
    book = CodeBook(toy_system(), toy_guidelines(), read_edits(tmp_path / "mce.json"))
    encounter = Encounter(setting=setting, age=age)  # type: ignore[arg-type]
    findings = check(Claim(codes, book, encounter))
    assert [f"{one.rule}: {one.codes[0]}" for one in findings] == found


@pytest.mark.parametrize("text", ["{", "{}", '{"codes": {}}', '{"codes": [], "age_categories": 1}'])
def test_a_file_without_the_editors_lists_is_bad_input(tmp_path: Path, text: str) -> None:
    (tmp_path / "mce.json").write_text(text)
    with pytest.raises(InputError, match=r"data/README\.md shows"):
        read_edits(tmp_path / "mce.json")
    with pytest.raises(InputError, match="cannot read"):
        read_edits(tmp_path / "gone.json")
