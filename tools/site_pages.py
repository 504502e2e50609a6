"""Pages of the documentation site that are made from the code, so they cannot go stale: a hook of mkdocs.

`cli.md` is what `copyrisk-run --help` says, of it and each of its commands; `http.md` is the API's OpenAPI document;
tables of codes are those of the enums.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from site_http import http_page

import copyrisk
from copyrisk import cli
from copyrisk.operations import COMMANDS

_WIDTH = "100"
_CLI_HEAD = """# Command line

`copyrisk-run` is the one program. Without a command it is a process (`--role`); with one it does something and ends.
Errors are one line on stderr. Exit codes: 0 done; 1 it failed, or something was found; 2 the command line or a setting
makes no sense.
Options of the program (`--redis`, `--config`) stand before the command.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, text in (("cli.md", cli_page()), ("http.md", http_page())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put lists of codes in place of `<!-- codes: NAME ... -->`."""
    return re.sub(r"<!-- codes: ([\w ]+) -->", lambda found: codes_tables(found[1].split()), markdown)


def codes_tables(names: list[str]) -> str:
    """A table of the members of each of these enums."""
    parts = []
    for name in names:
        rows = [f"| `{one.name}` | {one.value} |" for one in getattr(copyrisk, name)]
        parts += [f"### {name}", "\n".join(["| code | number |", "|---|---|", *rows])]
    return "\n\n".join(parts)


def cli_page() -> str:
    """Help of the program and of each command, as a page."""
    parts = [_CLI_HEAD, "## copyrisk-run", _block(_help_of([]))]
    for command in sorted(COMMANDS):
        parts += [f"## {command}", _block(_help_of([command]))]
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _help_of(words: list[str]) -> str:
    said = io.StringIO()
    with _wide(), redirect_stdout(said):
        try:
            cli.main([*words, "--help"])
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{words} --help ends with {end.code}") from None
    return said.getvalue()


@contextmanager
def _wide() -> Iterator[None]:
    """The same width wherever the page is made."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
