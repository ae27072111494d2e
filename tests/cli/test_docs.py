"""The documents tell the truth: their commands run, the verbs and options they name exist, their links lead somewhere.

Blocks fenced as ``sh`` are run, all of one document in one shell, in a directory of their own; ``sh root`` ones need
root and a kernel that mounts EROFS. A line that begins with ``! `` must be refused with exit code 3. ``console`` blocks
are for commands that cannot run inside a test (`make test`); they are only looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
from tests.support.registry import Registry

from eroseal.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = frozenset({"sh", "sh root", "sh registry", "console", "text", "json", "toml", "ini", "python"})
PEERS = ("fsverity", "veritysetup", "openssl", "mkfs.erofs", "fsck.erofs", "umoci")
REFUSAL = re.compile(r"^! (.*)$", re.MULTILINE)
REFUSED = r'status=0; \1 || status=$?; test "$status" = 3'
PLACES = ("/usr/sbin", "/sbin")

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str


@cache
def blocks_of(document: Path) -> tuple[Block, ...]:
    return tuple(Block(*match.groups()) for match in FENCE.finditer(document.read_text(encoding="utf-8")))


def commands_of(document: Path, *languages: str) -> str:
    return "".join(block.text for block in blocks_of(document) if block.language in languages)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documents(language: str) -> list[Path]:
    return [path for path in DOCUMENTS if any(block.language == language for block in blocks_of(path))]


def check_commands(script: str, directory: Path, **variables: str) -> None:
    """Run a document's commands; the first that fails ends them and the test."""
    places = [str(Path(sys.executable).parent), os.environ.get("EROSEAL_PEERS", ""), os.environ["PATH"], *PLACES]
    environment = os.environ | {"PATH": os.pathsep.join(place for place in places if place)} | variables
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", REFUSAL.sub(REFUSED, script)],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def need_peers(script: str, require_peer: Callable[[str], str]) -> None:
    for peer in PEERS:
        if re.search(rf"^[^#]*\b{re.escape(peer)}\b", script, re.MULTILINE):
            require_peer(peer)


@pytest.mark.parametrize("document", documents("sh"), ids=label)
def test_commands_run(document: Path, tmp_path: Path, require_peer: Callable[[str], str]) -> None:
    script = commands_of(document, "sh")
    need_peers(script, require_peer)
    check_commands(script, tmp_path)


@pytest.mark.parametrize("document", documents("sh root"), ids=label)
def test_commands_for_root_run(
    document: Path, tmp_path: Path, require_peer: Callable[[str], str], need_kernel_erofs: None
) -> None:
    script = commands_of(document, "sh", "sh root")
    need_peers(script, require_peer)
    check_commands(script, tmp_path)


@pytest.mark.parametrize("document", documents("sh registry"), ids=label)
def test_commands_with_a_registry_run(
    document: Path, tmp_path: Path, require_peer: Callable[[str], str], need_root: None
) -> None:
    script = commands_of(document, "sh registry")
    need_peers(script, require_peer)
    server = Registry(require_peer("docker-registry"), tmp_path / "registry")
    (tmp_path / "work").mkdir()
    try:
        check_commands(script, tmp_path / "work", REGISTRY=server.host, HOME=str(tmp_path))
    finally:
        server.stop()


def test_there_is_something_to_run() -> None:
    assert ROOT / "docs/tutorial.md" in documents("sh registry")
    assert ROOT / "README.md" in documents("sh")
    assert ROOT / "README.md" in documents("sh root")


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_every_block_says_what_it_is(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0
    assert {block.language for block in blocks_of(document)} <= LANGUAGES


def test_make_targets_exist() -> None:
    shown = {
        name for path in DOCUMENTS for name in re.findall(r"\bmake ([a-z]+)\b", commands_of(path, "console", "sh"))
    }
    assert {"demo", "test"} <= shown
    for target in sorted(shown):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def code_of(document: Path) -> str:
    """Blocks of commands, and what stands between backticks: where a document names commands."""
    text = document.read_text(encoding="utf-8")
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return "\n".join([*inline, commands_of(document, "sh", "sh root", "sh registry", "console")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_verbs_exist(document: Path) -> None:
    named = set(re.findall(r"\beroseal ([a-z][a-z-]+)", code_of(document)))
    assert named <= set(VERBS)


def test_every_verb_is_described() -> None:
    described = set(re.findall(r"`eroseal ([a-z][a-z-]*)", (ROOT / "docs/cli.md").read_text(encoding="utf-8")))
    assert described >= set(VERBS)


def options_of(verb: str) -> set[str]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_options_exist(document: Path) -> None:
    """Those given to a verb belong to it."""
    for verb, rest in re.findall(r"\beroseal ([a-z][a-z-]*)((?:[^\n|;)]|\\\n)*)", code_of(document)):
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", rest))
        assert named <= options_of(verb) | {"--help"}, f"eroseal {verb}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target
    for target in re.findall(r"\b((?:docs|src)/[\w./-]+\.(?:md|py))\b", text):
        assert (ROOT / target).exists(), target


def test_references_to_sections_exist() -> None:
    """Comments and docstrings that name a section of a document name one that is there."""
    for source in sorted((ROOT / "src").rglob("*.py")):
        text = re.sub(r"\s+", " ", source.read_text(encoding="utf-8"))
        for page, section in re.findall(r'(docs/[\w-]+\.md), "([^"]+)"', text):
            headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            assert section in headings, f"{label(source)}: {page}, {section!r}"


def test_decisions_are_numbered_without_gaps() -> None:
    pages = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for number, page in enumerate(pages, 1):
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. ")


def test_measurements_have_a_place() -> None:
    text = (ROOT / "docs/measurements.md").read_text(encoding="utf-8")
    assert text.count("<!-- bench: begin -->") == text.count("<!-- bench: end -->") == 1
