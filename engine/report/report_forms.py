"""What a report is written as, by the end of a path."""

from __future__ import annotations

from collections.abc import Callable

from engine.report.json import encode
from engine.report.schema import ReportDocument
from engine.report.tables.report import report_markdown


def _page(document: ReportDocument) -> bytes:
    # Its library is imported for pages alone.
    from engine.report.page.page import report_page

    return report_page(document).encode()


REPORT_FORMS: dict[str, Callable[[ReportDocument], bytes]] = {
    ".html": _page,
    ".md": lambda document: report_markdown(document).encode(),
    ".json": encode,
}
"""How a document becomes the bytes of a file."""
