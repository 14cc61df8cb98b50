"""The Tabular List: the packaged release as coders know it, and small code systems by hand."""

import subprocess
import sys
from difflib import get_close_matches

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.icd.tabular import CodeSystem, Entry, Heading, InheritedNote, load_tabular

TABULAR = load_tabular()
# B20 and P84 are blocks of one category each, and billable: easy to lose beside their block.
LONE_CATEGORIES = ("B20", "F99", "P84", "R99", "Z66")


@pytest.fixture
def asthma() -> CodeSystem:
    lungs = Heading("10", "Respiratory", excludes2=("burns (T27.-)",))
    lower = Heading("J40-J4A", "Lower respiratory", code_first=("the cause",))
    return CodeSystem(
        release="test",
        entries=[
            Entry("J45", "Asthma", chapter=lungs, block=lower, excludes2=("wheezing (R06.2)",)),
            Entry("J45.2", "Mild asthma", "J45", chapter=lungs, block=lower),
            Entry("J45.9", "Asthma, unspecified", "J45", chapter=lungs, block=lower),
        ],
    )


# --- the release ---------------------------------------------------------------------------


def test_the_release_is_whole() -> None:
    assert TABULAR.release == "2026-04-01"
    assert len(TABULAR) == 98_186
    assert sum(entry.billable for entry in TABULAR.values()) == 74_719
    assert sum(TABULAR.parent(code) is None for code in TABULAR) == 1_918


@pytest.mark.parametrize("code", LONE_CATEGORIES)
def test_a_category_is_not_lost_beside_a_block_of_the_same_name(code: str) -> None:
    assert TABULAR.billable(code)
    assert TABULAR[code].block.name == code


def test_codes_come_in_tabular_order() -> None:
    order = list(TABULAR)
    assert order[:3] == ["A00", "A00.0", "A00.1"]
    assert order[-1] == "U09.9"
    assert order.index("C75") < order.index("C7A") < order.index("C76")  # not alphabetical


def test_an_entry_knows_its_place() -> None:
    entry = TABULAR["E11.9"]
    assert entry.title == "Type 2 diabetes mellitus without complications"
    assert (entry.chapter.name, entry.chapter.title) == (
        "4",
        "Endocrine, nutritional and metabolic diseases",
    )
    assert (entry.block.name, entry.block.title) == ("E08-E13", "Diabetes mellitus")
    assert TABULAR.parent("E11.9") == "E11"
    assert TABULAR.parent("E11") is None
    assert TABULAR.ancestors("E11.311") == ["E11.31", "E11.3", "E11"]


def test_own_notes_are_those_printed_below_the_code() -> None:
    assert "Asthma NOS" in TABULAR["J45.909"].inclusion_terms
    assert "diabetes NOS" in TABULAR["E11"].includes
    assert TABULAR["E11"].excludes1[0] == "diabetes mellitus due to underlying condition (E08.-)"
    assert "insulin (Z79.4)" in TABULAR["E11"].use_additional_code
    assert TABULAR["E11.65"].use_additional_code == ()


def test_notes_from_above_apply_nearest_first() -> None:
    notes = TABULAR.inherited("J18.9", "use_additional_code")
    assert [note.place for note in notes[:2]] == ["J09-J18", "Chapter 10"]
    assert InheritedNote("Chapter 10", "tobacco use (Z72.0)") in notes
    assert InheritedNote(
        "J18", ", if applicable, associated influenza (J09.X1, J10.0-, J11.0-)"
    ) in TABULAR.inherited("J18.9", "code_first")
    excludes1 = TABULAR.inherited("E11.9", "excludes1")
    assert [note.place for note in excludes1][:2] == ["E11.9", "E11"]
    assert InheritedNote("E11", "gestational diabetes (O24.4-)") in excludes1


def test_parents_and_children_agree_across_the_release() -> None:
    for code in TABULAR:
        for child in TABULAR.children(code):
            assert TABULAR.parent(child) == code
            assert child.startswith(code)
            assert TABULAR[child].block is TABULAR[code].block
    children = [child for code in TABULAR for child in TABULAR.children(code)]
    assert len(children) == len(set(children)) == len(TABULAR) - 1_918


def test_descendants_are_all_that_lies_between_a_category_and_the_next() -> None:
    order = list(TABULAR)
    between = order[order.index("S52") + 1 : order.index("S53")]
    assert TABULAR.descendants("S52") == between
    assert TABULAR.descendants("I10") == []


# --- spelling ------------------------------------------------------------------------------


@given(
    code=st.sampled_from(list(TABULAR)),
    lower=st.booleans(),
    dotted=st.booleans(),
    dashes=st.sampled_from(["", "-", "--"]),
    before=st.sampled_from(["", " ", "\t"]),
    after=st.sampled_from(["", " ", "\n"]),
)
def test_every_spelling_of_a_code_is_understood(
    code: str, lower: bool, dotted: bool, dashes: str, before: str, after: str
) -> None:
    spelling = (code if dotted else code.replace(".", "")) + dashes
    spelling = spelling.lower() if lower else spelling
    assert TABULAR.normalize(f"{before}{spelling}{after}") == code


def test_the_dash_of_the_index_may_follow_the_dot() -> None:
    assert TABULAR.normalize("E11.-") == "E11"


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("E11.99", "E11.9"),
        ("I10.0", "I10"),
        ("M54.5Z", "M54.59"),
        ("W08A", "W08.XXXA"),
        ("U99", "Z99"),
    ],
)
def test_an_unknown_code_is_refused_with_its_neighbours(text: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"not in ICD-10-CM 2026-04-01.*\b{near}\b") as caught:
        TABULAR.normalize(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "-", "pneumonia", "E1.19", "E11-E13", "E11.9, I10"])
def test_text_that_is_no_single_code_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not in ICD-10-CM"):
        TABULAR.normalize(text)


# --- 7th characters ------------------------------------------------------------------------


def test_a_stem_has_the_7th_characters_of_its_nearest_definition() -> None:
    wrist = TABULAR["S52.501"].seventh_characters
    assert "".join(wrist) == "ABCDEFGHJKMNPQRS"
    assert wrist["A"] == "initial encounter for closed fracture"
    assert "".join(TABULAR["S52.521"].seventh_characters) == "ADGKPS"
    assert TABULAR["O31.00"].seventh_characters["1"] == "fetus 1"
    assert TABULAR["E11.9"].seventh_characters == {}
    assert TABULAR["S52.501A"].seventh_characters == {}


def test_a_7th_character_completes_title_and_inclusion_terms() -> None:
    code = TABULAR["S52.501B"]
    assert code.title == (
        "Unspecified fracture of the lower end of right radius, "
        "initial encounter for open fracture type I or II"
    )
    assert code.inclusion_terms == ("initial encounter for open fracture NOS",)


@pytest.mark.parametrize(
    ("stem", "character", "code"),
    [
        ("S52.501", "A", "S52.501A"),
        ("S52.501", "a", "S52.501A"),
        ("O31.00", "1", "O31.00X1"),
        ("T07", "S", "T07.XXXS"),
    ],
)
def test_completing_pads_with_placeholders(stem: str, character: str, code: str) -> None:
    assert TABULAR.complete(stem, character) == code


@pytest.mark.parametrize(
    ("code", "stem"),
    [
        ("S52.501A", "S52.501"),
        ("T07.XXXS", "T07"),
        ("S52.501", "S52.501"),
        ("E11.9", "E11.9"),
        ("I10", "I10"),
        ("L98.A315", "L98.A315"),  # seven characters, but a line of its own in the book
    ],
)
def test_the_stem_lacks_the_7th_character(code: str, stem: str) -> None:
    assert TABULAR.stem(code) == stem


def test_completing_agrees_with_the_children_across_the_release() -> None:
    stems = set(TABULAR.stems())
    for code in TABULAR:
        if code not in stems:
            assert TABULAR.complete(TABULAR.ancestors(code)[0], code[-1]) == code


@pytest.mark.parametrize(
    ("stem", "character", "complaint"),
    [
        ("S06.1X7", "D", "it takes: A$"),  # the definition offers D, the release does not
        ("S52.501", "Z", "it takes: A, B, C, D"),
        ("S52.5", "A", "it takes: none"),
        ("E11.9", "A", "it takes: none"),
    ],
)
def test_completing_to_a_code_outside_the_release_is_refused(
    stem: str, character: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        TABULAR.complete(stem, character)


def test_stems_leave_out_what_only_adds_a_7th_character() -> None:
    stems = TABULAR.stems()
    assert len(stems) == 46_881
    assert {"S52.501", "T07", "E11.9", "B20"} <= set(stems)
    assert not {"S52.501A", "T07.XXXS", "O31.00X1"} & set(stems)
    assert "L98.A315" in stems  # seven characters, but a line of its own in the book


# --- unspecific mentions -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("I50", "I50.9"),
        ("N18", "N18.9"),
        ("J18", "J18.9"),  # "Pneumonia, unspecified organism", as is the category
        ("G93", "G93.9"),  # not G93.4, "Other and unspecified encephalopathy"
        ("M54.5", "M54.50"),
        ("M25.56", "M25.569"),
        ("G35", "G35.D"),
        ("J45", "J45.909"),  # "Asthma NOS"
        ("K35", "K35.80"),  # "Acute appendicitis NOS"
        ("E11", "E11.9"),  # not E11.8, "with unspecified complications"
        ("E08", "E08.9"),
        ("K21", "K21.9"),
        ("F10.1", "F10.10"),
        ("F03", "F03.90"),
        ("K25", "K25.9"),
    ],
)
def test_an_unspecific_mention_gets_the_code_the_book_names_for_it(code: str, answer: str) -> None:
    assert TABULAR.unspecified(code) == answer
    assert TABULAR.billable(answer)


@pytest.mark.parametrize(
    ("code", "stem"),
    [
        ("S93.4", "S93.409"),
        ("S52.5", "S52.509"),
        ("S62.13", "S62.133"),  # displaced unless documented
        ("S06.0", "S06.0XA"),  # "Concussion NOS"
    ],
)
def test_an_unspecific_injury_gets_the_stem_that_lacks_its_7th_character(
    code: str, stem: str
) -> None:
    assert TABULAR.unspecified(code) == stem
    assert not TABULAR.billable(stem)


@pytest.mark.parametrize("code", ["I10", "B20", "E11.9", "S52.501A", "S52.501"])
def test_a_complete_code_is_its_own_answer(code: str) -> None:
    assert TABULAR.unspecified(code) == code


@pytest.mark.parametrize(
    "code",
    [
        "C50",  # a breast is female or male
        "E11.3",  # E11.31 says "unspecified", but of a retinopathy
        "I13",
        "Z79",
        "D63",
        "T36.0X",  # a poisoning or an adverse effect
    ],
)
def test_the_book_may_offer_nothing_unspecified(code: str) -> None:
    assert TABULAR.unspecified(code) is None


def test_every_answer_lies_below_the_code_and_lacks_at_most_its_7th_character() -> None:
    for code in TABULAR.stems():
        answer = TABULAR.unspecified(code)
        if answer is not None:
            assert answer == code or code in TABULAR.ancestors(answer)
            assert TABULAR.billable(answer) or TABULAR[answer].seventh_characters


# --- code systems by hand ------------------------------------------------------------------


def test_a_code_system_needs_only_codes_titles_and_parents(asthma: CodeSystem) -> None:
    assert list(asthma) == ["J45", "J45.2", "J45.9"]
    assert asthma["J45"].children == ("J45.2", "J45.9")
    assert not asthma.billable("J45")
    assert asthma.billable("J45.9")
    assert asthma.normalize("j459") == "J45.9"
    assert asthma.unspecified("J45") == "J45.9"
    assert "J45.8" not in asthma


def test_notes_are_inherited_from_category_block_and_chapter(asthma: CodeSystem) -> None:
    assert asthma.inherited("J45.9", "excludes2") == [
        ("J45", "wheezing (R06.2)"),
        ("Chapter 10", "burns (T27.-)"),
    ]
    assert asthma.inherited("J45.9", "code_first") == [("J40-J4A", "the cause")]


def test_entries_that_make_no_tree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"E11, the parent of E11\.9, is missing"):
        CodeSystem(release="test", entries=[Entry("E11.9", "Type 2 diabetes", "E11")])
    with pytest.raises(ValueError, match="I10 comes twice"):
        CodeSystem(release="test", entries=[Entry("I10", "Hypertension")] * 2)


def test_an_unknown_code_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        TABULAR.children("e119")


def test_the_release_is_read_once_and_not_on_import() -> None:
    assert load_tabular() is load_tabular("2026-04-01") is load_tabular("2026-09-30") is TABULAR
    script = "import sys, clh.icd.tabular as t; sys.exit(t._load.cache_info().misses)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_positions_run_through_the_tree() -> None:
    order = list(TABULAR)
    assert [TABULAR.position(code) for code in order] == list(range(len(order)))
    assert order[TABULAR.position("S52") : TABULAR.end("S52")] == [
        "S52",
        *TABULAR.descendants("S52"),
    ]
    assert TABULAR.end("I10") == TABULAR.position("I10") + 1


def test_a_retired_code_is_its_own_stem() -> None:
    assert TABULAR.stem_or_self("S52.501A") == "S52.501"
    assert TABULAR.stem_or_self("I10") == "I10"
    assert TABULAR.stem_or_self("M54.5Z") == "M54.5Z"


@given(st.text("ABEXZ0159.", max_size=8))
def test_the_nearest_categories_are_those_that_difflib_finds_among_all(text: str) -> None:
    letters = text.replace(".", "")
    if all(letters[:end] not in TABULAR for end in (3, 4)):
        spelled = f"{letters[:3]}.{letters[3:]}".rstrip(".")
        categories = [code for code in TABULAR if TABULAR.parent(code) is None]
        assert TABULAR.nearest(text) == get_close_matches(spelled, categories)
