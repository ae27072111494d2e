"""The program itself: help, version, usage errors, debugging, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from tests.cli.conftest import Run
from tests.support.program import command, eroseal

from eroseal import __version__
from eroseal.cli.main import VERBS, cli


def test_version(tmp_path: Path) -> None:
    assert eroseal("--version", cwd=tmp_path).text == f"eroseal {__version__}\n"


@pytest.mark.parametrize("order", [("--version", "--verbose"), ("--verbose", "--version")])
def test_verbose_version_shows_the_hash_kernel(tmp_path: Path, order: tuple[str, str]) -> None:
    lines = eroseal(*order, cwd=tmp_path).text.splitlines()
    assert lines[0] == f"eroseal {__version__}"
    assert lines[1].startswith("hashing: ")


def test_installed_program_is_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "eroseal"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"eroseal {__version__}\n"


def test_help_lists_every_verb(tmp_path: Path) -> None:
    text = eroseal("--help", cwd=tmp_path).text
    assert [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()] == list(VERBS)


def test_every_option_is_explained() -> None:
    for verb in VERBS:
        found = cli.get_command(click.Context(cli), verb)
        assert found is not None
        assert found.help
        for parameter in found.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{verb} {parameter.opts}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(tmp_path: Path, verb: str) -> None:
    text = eroseal(verb, "--help", cwd=tmp_path).text
    assert f"Usage: eroseal {verb}" in text
    assert "--debug" in text


def test_short_commands_import_little(tmp_path: Path) -> None:
    """Starting is quick because of what is not imported; a time would depend on the machine."""
    code = (
        "import sys; from eroseal.cli.main import main; main({!r}); "
        "print(sorted({{'rich', 'cryptography', 'msgspec', 'json', 'asyncio'}} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--version"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stderr == "[]\n", arguments


def test_a_build_does_not_load_cryptography(place: Path) -> None:
    (place / "tree").mkdir()
    code = (
        "import sys; from eroseal.cli.main import main; assert main(['build', 'tree', 'new.erofs']) == 0; "
        "print({'rich', 'cryptography'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=place)
    assert done.stdout.splitlines()[-1] == "none"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "no such command 'frobnicate'"),
        (["verify", "--frobnicate"], "no such option"),
        (["build"], "missing argument 'SOURCE' (see eroseal build --help)"),
        (["build", "a", "b.erofs", "--chunk-size", "3K"], "3072"),
        (["build", "a", "b.erofs", "--chunk-size", "big"], "not a size"),
        (["build", "a", "b.erofs", "--salt", "zz"], "not hexadecimal digits"),
        (["build", "a", "b.erofs", "--uuid", "1234"], "not a uuid"),
        (["build", "a", "b.erofs", "--timestamp", "yesterday"], "not a time"),
        (["build", "a", "b.erofs", "--inline-max", "5000"], "4095"),
        (["build", "a", "b.erofs", "--blobs", "build"], "needs a store"),
        (["build", "a", "dir:store:.hidden"], "not an image name"),
        (["build", "a", "oci:there:.tag"], "not a tag"),
        (["build", "a", "b.erofs", "--name", "x"], "are signed"),
        (["build", "a", "b.erofs", "--key", "k"], "belong together"),
        (["verify"], "nothing to verify"),
        (["verify", "app.erofs"], "no source of trust"),
        (["ls", "app.erofs"], "no source of trust"),
        (["cat", "app.erofs", "big"], "no source of trust"),
        (["stat", "app.erofs", "big"], "no source of trust"),
        (["unpack", "app.erofs", "out"], "no source of trust"),
        (["export", "app.erofs", "out"], "no source of trust"),
        (["diff", "app.erofs", "app.erofs"], "no source of trust"),
        (["sign", "app.erofs"], "nobody to sign as"),
        (["sign", "app.erofs", "--attach", "s"], "--attach needs --statement"),
        (["digest", "app.erofs", "--name", "x"], "belong to --to-sign"),
        (["cat", "app.erofs", "etc", "--insecure"], "is a directory"),
    ],
)
def test_wrong_usage(run: Run, place: Path, arguments: list[str], expected: str) -> None:
    before = sorted(place.iterdir())
    outcome = run(*arguments, code=2)
    assert expected in outcome.error.lower() or expected in outcome.error
    assert outcome.out == b""
    assert sorted(place.iterdir()) == before


def test_no_arguments_show_help(tmp_path: Path) -> None:
    done = subprocess.run(command(), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_traceback_only_with_debug(place: Path) -> None:
    for arguments in (["--debug", "digest", "missing"], ["digest", "missing", "--debug"]):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, cwd=place)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "eroseal: error: missing: " in done.stderr


def test_unexpected_errors_are_one_line(place: Path) -> None:
    code = (
        "import sys, eroseal.cli.digest as d; d.open_consistent = lambda *a, **k: 1 / 0; "
        "from eroseal.cli.main import main; sys.exit(main(['digest', 'app.erofs']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("eroseal: error: internal error: ZeroDivisionError")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    with subprocess.Popen(
        command("cat", "app.erofs", *["big"] * 20, "--insecure"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=place,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read().decode().splitlines() == ["eroseal: warning: not verified: --insecure"]
        assert process.wait() == 128 + 13


def test_output_that_cannot_be_written_is_an_error(run: Run) -> None:
    with open("/dev/full", "wb") as full:
        outcome = run("digest", "app.erofs", code=1, stdout=full)
    assert "no space left on device" in outcome.error


def test_names_cannot_drive_the_terminal(run: Run) -> None:
    outcome = run("cat", "app.erofs", "evil\x1b[2J", "--insecure", code=1)
    assert "\\x1b" in outcome.error
    assert b"\x1b" not in run("ls", "app.erofs", "--insecure").out


def test_nothing_needs_a_utf8_locale(run: Run) -> None:
    outcome = run("ls", "app.erofs", "--insecure", environment={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert "byte\\xff" in outcome.text


def test_completion_answers(tmp_path: Path) -> None:
    environment = os.environ | {"_EROSEAL_COMPLETE": "bash_complete", "COMP_WORDS": "eroseal ver", "COMP_CWORD": "1"}
    done = subprocess.run(command(), env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "plain,verify\n"


def test_progress_only_on_a_terminal(run: Run) -> None:
    assert run("digest", "app.erofs").err == ""
