"""What the pages point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(page: Path) -> str:
    """The page without its fenced code."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_0-9.-]+/)+[a-z_0-9.-]+\.(?:py|md|css|toml|txt))`", prose(page))
    roots = (ROOT, ROOT / "src/monoport", page.parent)
    missing = [name for name in named if "mydb" not in name and not any((root / name).exists() for root in roots)]
    assert missing == []
