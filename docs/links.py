"""Follow every link inside a built site: `python docs/links.py [SITE]` names those that lead nowhere."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

SITE = Path(__file__).parents[1] / "target/site"


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.names.add(value)
            if name in ("href", "src") and value and tag in ("a", "img", "script", "link"):
                self.targets.add(value)


def broken(site: Path) -> list[str]:
    """The links inside a site whose page, file or heading is not there. Pages that the report wrote count by name."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    lost = []
    for page, found in sorted(pages.items()):
        if page.name == "404.html" or "report" in page.parts:  # its links are from the root; it is one page by itself
            continue
        for target in sorted(found.targets):
            address, _, name = unquote(target).partition("#")
            if re.match(r"\w+:", address):
                continue
            at = (page.parent / address).resolve() if address else page
            missing = name and not name.startswith("__") and at in pages and name not in pages[at].names
            if not at.exists() or missing:
                lost.append(f"{page.relative_to(site.resolve())}: {target}")
    return lost


if __name__ == "__main__":
    lost = broken(Path(sys.argv[1]) if len(sys.argv) > 1 else SITE)
    sys.exit("\n".join(["these links lead nowhere:", *lost]) if lost else None)
