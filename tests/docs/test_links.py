"""Whoever reads the documentation gets where its links say: files, headings, and nothing outside of the repository."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "tests/**/*.md", "model/weights/*.md")
    for path in REPOSITORY.glob(pattern)
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def relative_links(page: Path) -> list[str]:
    text = _CODE.sub("", (REPOSITORY / page).read_text())
    return [link for link in _LINK.findall(text) if not urlsplit(link).scheme]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as code hosts make them: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(text)]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", PAGES, ids=str)
def test_every_relative_link_leads_to_a_file_and_heading_of_this_repository(document: Path) -> None:
    for link in relative_links(document):
        path, _, anchor = unquote(link).partition("#")
        target = ((REPOSITORY / document).parent / path).resolve() if path else REPOSITORY / document
        assert target.is_relative_to(REPOSITORY), f"{link} leads out of the repository"
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading for #{anchor}"


def test_every_page_can_be_found_from_the_index() -> None:
    """By following links from docs/README.md; the decisions and experiments are lists of their own."""
    seen, to_read = set[Path](), [Path("docs/README.md")]
    while to_read:
        page = to_read.pop()
        seen.add(page)
        for link in relative_links(page):
            target = ((REPOSITORY / page).parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_relative_to(REPOSITORY):
                found = target.relative_to(REPOSITORY)
                to_read += [found] if found not in seen else []
    own_pages = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "docs").glob("*.md")}
    assert own_pages <= seen
