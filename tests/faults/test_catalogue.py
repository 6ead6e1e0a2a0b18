"""The catalogue of faults cannot lie: every fault has a test, and a control that can fail."""

from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS, TESTS, Index, Kind, table

PAGE = TESTS.parent / "docs" / "faults.md"
BOTH = """
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.fault(1)]


@pytest.mark.parametrize("protected", [True, pytest.param(False, marks=pytest.mark.control(2, 3))])
async def test_it(protected):
    pass


@pytest.mark.fault(4)
def helper():
    pass
"""


@pytest.mark.fault(42)
def test_every_fault_has_a_test_and_a_control() -> None:
    """Except for those whose reason stands in the catalogue."""
    assert [fault.number for fault in FAULTS] == list(range(1, 43))
    assert Index.of().gaps() == []


@pytest.mark.control(42)
def test_a_fault_without_a_control_is_found(tmp_path: Path) -> None:
    """So are one without a test, a number that is none, and an excuse that is not needed."""
    (tmp_path / "test_both.py").write_text(BOTH)
    (tmp_path / "test_wrong.py").write_text(
        "@pytest.mark.fault(43, 36)\n@pytest.mark.control(36)\ndef test_wrong(): pass\n"
    )
    index = Index.of(tmp_path)
    assert index.tests(Kind.FAULT, 1) == ["test_both.py::test_it"]
    assert index.tests(Kind.CONTROL, 3) == ["test_both.py::test_it"]
    assert index.tests(Kind.FAULT, 4) == [], "a helper is no test"
    gaps = index.gaps()
    assert any(gap.startswith("fault 1 ") and gap.endswith("no control") for gap in gaps)
    assert any(gap.startswith("fault 2 ") and gap.endswith("no fault") for gap in gaps)
    assert "there is no fault 43" in gaps
    assert "fault 36 has all it needs: its reason can go" in gaps


def test_the_source_says_what_pytest_sees(request: pytest.FixtureRequest) -> None:
    """What is read from the source are the marks of the tests that were collected."""
    index = Index.of()
    for item in request.session.items:
        file, _, test = item.nodeid.partition("[")[0].partition("::")
        name = f"{file.removeprefix('tests/')}::{test}"
        for kind in Kind:
            for mark in item.iter_markers(kind):
                for number in mark.args:
                    assert name in index.tests(kind, number)


def test_the_page_is_up_to_date() -> None:
    """After a change: ``python -m tests.faults.catalogue`` prints what belongs there."""
    assert PAGE.read_text().endswith(table(Index.of()))
