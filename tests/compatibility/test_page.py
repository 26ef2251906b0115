"""The page in the docs says what the tests show."""

import pytest

from tests.compatibility import table

NAMES = [module.__name__ for module in table.modules()]


def test_the_page_is_written_from_the_tests():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), (
        "run `python -m tests.compatibility.table`"
    )


@pytest.mark.parametrize("section", table.SECTIONS)
def test_every_section_has_a_row(section):
    assert section in {row.section for row in table.ROWS.values()}


@pytest.mark.parametrize("module", table.modules(), ids=NAMES)
def test_every_test_stands_for_a_row(module):
    tests = {test for name, test in vars(module).items() if name.startswith("test_")}
    assert tests
    assert tests <= table.TESTS
