"""What the site has beside the files of docs/, as a hook of MkDocs (mkdocs.yml).

Pages from elsewhere in the repository, the references of the command line and of Python made from the code, links that
lead out of docs/, and the addresses of pyproject.toml.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Path in the repository -> page; a file of docs/ is a page by its own name."""


def on_config(config: Any) -> Any:
    """The addresses of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.site_url, config.repo_url = project["urls"]["Documentation"], project["urls"]["Homepage"]
    config.repo_name, config.site_description = "Repository", project["description"]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not files of docs/."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    made |= {"cli.md": command_line(), "python.md": python_names()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links of the repository as links of the site, or into the repository."""
    sources = {made: source for source, made in PAGES.items()}
    return relinked(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"), config.repo_url)


def relinked(markdown: str, source: str, repository: str) -> str:
    """`markdown` of the file `source` with its relative links as the site has them.

    >>> relinked("[a](docs/api.md#x) [b](benchmarks/run.py)", "README.md", "https://host/us")
    '[a](api.md#x) [b](https://host/us/blob/main/benchmarks/run.py)'
    """

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        place = inside or f"{repository}/blob/main/{path}"
        return f"]({place}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, markdown)


def command_line() -> str:
    """A page of all verbs with their arguments and options, from the command itself."""
    import typer

    from anomalysd_edge.cli.main import app

    root: Any = typer.main.get_command(app)
    lines = ["# Command line", "", "```text", (root.help or "").strip(), "```", "", *_parameters(root)]
    for name in root.list_commands(None):
        lines += _command(f"sd-edge {name}", root.get_command(None, name), 2)
    return "\n".join(lines)


def _command(title: str, command: Any, level: int) -> Iterator[str]:
    """A verb's heading, text and options, then those of its own commands."""
    text = command.help or command.callback.__doc__ or ""
    said, _, example = re.sub(r"[\b\f]", "", text).partition("Example:")
    yield from ("", f"{'#' * level} {title}", "", " ".join(said.split()), "")
    if example:
        yield from ("```text", " ".join(example.split()), "```", "")
    yield from _parameters(command)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{title} {name}", inner, level + 1)


def _parameters(command: Any) -> Iterator[str]:
    """A table of what `--help` says of each argument and option."""
    context = command.context_class(command)
    shown = [one.get_help_record(context) for one in command.params if not getattr(one, "hidden", False)]
    if shown:
        yield from ("", "| argument or option | meaning |", "|---|---|")
    for name, text in shown:
        said = " ".join(text.replace("|", "\\|").split())
        yield f"| `{name}` | {said} |"


def python_names() -> str:
    """A page of all public names, for mkdocstrings to fill from their docstrings."""
    import anomalysd_edge

    places = {name: "anomalysd_edge.errors" for name in anomalysd_edge.__all__ if name != "__version__"}
    places |= anomalysd_edge._MODULES  # not imported: the tools of the site have no torch
    lines = [
        "# Python classes",
        "",
        "From their docstrings; [the interface](api.md) says how they belong together.",
        "",
    ]
    for name in sorted(places, key=lambda name: (places[name] == "anomalysd_edge.errors", name)):
        lines += [f"::: {places[name]}.{name}", ""]
    return "\n".join(lines)
