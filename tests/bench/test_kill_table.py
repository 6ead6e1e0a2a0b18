"""The kill table in its page."""

import pytest

from bench.kills.report import put

PAGE = "# A\n\n<!-- kill-table x -->\nold\n<!-- end of kill-table x -->\n\nB\n"


def test_a_table_replaces_what_was_between_its_marks() -> None:
    """And nothing else; a second time gives the same page."""
    page = put(PAGE, "x", "| new |")
    assert page == PAGE.replace("old", "\n| new |")
    assert put(page, "x", "| new |") == page


def test_a_page_without_marks_is_refused() -> None:
    """A table is never lost in silence."""
    with pytest.raises(ValueError, match="'y'"):
        put(PAGE, "y", "| new |")
