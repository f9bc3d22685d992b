"""The site: the pages as they lie in the repository, by Sphinx, with their links as they are.

    python -m sphinx -W -c docs . site        # then open site/index.html

The root of what Sphinx reads is the repository, so README, change log and the pages beside the code are pages
of the site, too, and a link means the same here as where the repository is looked at. Files of the repository
that a page links are shown as pages below `source/`. Nothing is asked of any host, neither when the site is
built nor when it is looked at, and it needs no server.

Left out on purpose: pages of docstrings, which Python and editors show; what a page would need besides
Markdown, since the same pages are read without this.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from rs_aligner import __version__

ROOT = Path(__file__).resolve().parents[1]
NAVIGATION = {
    "Start here": ["README", "docs/command_line", "docs/models", "docs/defaults"],
    "Guides": [
        "docs/guides/one_machine",
        "docs/guides/slurm",
        "docs/guides/verifiable_answers",
        "docs/guides/reward_model",
        "docs/guides/from_nemo_aligner",
        "docs/guides/from_trlx",
        "docs/guides/from_trl",
    ],
    "Choosing what is learnt": [
        "docs/recipes",
        "docs/selection",
        "docs/objective",
        "docs/lora",
        "docs/judge",
        "docs/data",
        "docs/chat",
    ],
    "Running it": [
        "docs/continuation",
        "docs/engines",
        "docs/cpu",
        "docs/scaling",
        "docs/gpu",
        "scripts/slurm/README",
    ],
    "Looking at it": ["docs/metrics", "docs/report", "docs/after_a_run"],
    "Reference": ["docs/config", "docs/stability", "CHANGELOG"],
    "Behind it": ["docs/design", "docs/extending", "benchmarks/results/README", "CONTRIBUTING"],
}
"""The pages by their reader; a test holds that every page is in it once."""

project = "RS Aligner"
version = release = __version__
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["docs/**.md", *(f"{page}.md" for pages in NAVIGATION.values() for page in pages)]
# What has no page is not looked through: runs have millions of lines.
exclude_patterns = [
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and path.name not in ("docs", "scripts", "benchmarks")
]
myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_title = f"RS Aligner {version}"
templates_path = [str(ROOT / "docs" / "_templates")]
html_additional_pages = {"index": "to_start.html"}
html_show_sourcelink = html_copy_source = html_show_copyright = False
smartquotes = False  # keys and values are quoted as they are typed
html_show_search_summary = False  # it is fetched, which a page that was opened from a file may not do
html_use_index = False

Read = tuple[str, Any, str]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _add_navigation)
    app.connect("doctree-read", _link_sources, priority=100)  # before Sphinx looks for downloads
    app.connect("doctree-resolved", _name_pages)
    app.connect("html-collect-pages", _source_pages)


def _add_navigation(app: Sphinx, page: str, text: list[str]) -> None:
    """The menu stands here and not on the first page, where readers of plain Markdown would see it."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            listed = "\n".join(f"First steps </{one}>" if one == "README" else f"/{one}" for one in pages)
            text[0] += f"\n```{{toctree}}\n:hidden:\n:titlesonly:\n:caption: {caption}\n\n{listed}\n```\n"


def _link_sources(app: Sphinx, tree: nodes.document) -> None:
    """Links to files and folders of the repository lead to a page that shows what is there."""
    page = app.env.docname
    for link in [*tree.findall(addnodes.download_reference), *tree.findall(addnodes.pending_xref)]:
        path = ((ROOT / page).parent / link["reftarget"]).resolve()
        if isinstance(link, addnodes.download_reference) or path.is_dir():
            name = path.relative_to(ROOT).as_posix()
            _sources(app).setdefault(page, set()).add(name)
            address = app.builder.get_relative_uri(page, f"source/{name}")
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))


def _sources(app: Sphinx) -> dict[str, set[str]]:
    """Files and folders that pages link, by page; kept with what Sphinx knows of the pages."""
    if not hasattr(app.env, "rs_aligner_sources"):
        app.env.rs_aligner_sources = {}
    return app.env.rs_aligner_sources


def _name_pages(app: Sphinx, tree: nodes.document, page: str) -> None:
    """A link that has a page's path as its text has the page's title here."""
    titles = {f"{name}.md": title.astext() for name, title in app.env.titles.items()}
    for link in tree.findall(nodes.reference):
        if link.get("internal") and link.astext() in titles:
            link.children = [nodes.Text(titles[link.astext()])]


def _source_pages(app: Sphinx) -> Iterator[Read]:
    """The pages of files and folders."""
    named = {name for names in _sources(app).values() for name in names}
    for name in sorted(named):
        path = ROOT / name
        if path.is_dir():
            files = sorted(
                one.name for one in path.iterdir() if one.suffix in {".py", ".yaml", ".sh", ".sbatch"}
            )
            items = (_item(f"{name}/{one}", one, f"{name}/{one}" in named) for one in files)
            shown = f"<ul>{''.join(items)}</ul>"
        else:
            language = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".ipynb": "json"}.get(
                path.suffix, "none"
            )
            shown = app.builder.highlighter.highlight_block(path.read_text(encoding="utf-8"), language)
        body = f"<h1><code>{html.escape(name)}</code></h1>{shown}"
        yield f"source/{name}", {"title": name, "body": body}, "page.html"


def _item(path: str, name: str, has_page: bool) -> str:
    """A file in the list of a folder; with its link, where a page links it."""
    shown = f"<code>{html.escape(name)}</code>"
    address = f"{path.split('/')[-2]}/{name}.html"
    return f'<li><a href="{address}">{shown}</a></li>' if has_page else f"<li>{shown}</li>"
