"""What mkdocs does not know by itself: pages of results/ belong to the site, and links that lead
out of the site lead to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Put the pages and pictures of results/ below results/ of the site."""
    for path in sorted((ROOT / "results").iterdir()):
        if path.suffix in (".md", ".png", ".json"):
            files.append(File(f"results/{path.name}", str(ROOT), config["site_dir"],
                              config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they work in the repository, as they work on the site."""
    source = ROOT / ("" if page.file.src_uri.startswith("results/") else "docs")
    here = (source / page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        target = (here / found[1]).resolve()
        if not target.is_relative_to(ROOT):
            return found[0]
        path, anchor = target.relative_to(ROOT).as_posix(), found[2] or ""
        uri = path.removeprefix("docs/")
        if files.get_file_from_path(uri) is None:
            code = config["extra"]["code_url"]
            return f"]({code}/blob/main/{path}{anchor})" if target.exists() else found[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{uri}{anchor})"

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme's search is a dialog, which must have a name."""
    return output.replace('data-md-component="search" role="dialog"',
                          'data-md-component="search" role="dialog" aria-label="Search"')
