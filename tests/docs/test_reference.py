"""The pages in ``docs/`` say what the program says of itself."""

from __future__ import annotations

import pytest

from tests.docs.reference import DOCS, PAGES, with_reference


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = (DOCS / name).read_text("utf-8")
    assert with_reference(page, PAGES[name]()) == page, "run `make docs`"
