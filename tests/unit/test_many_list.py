"""Lists of images: what lines mean, and what is refused, with the line that it is in."""

from __future__ import annotations

import os

import pytest

from eroseal.build.manylist import ListedImage, parse_list
from eroseal.build.options import BlobLayout, BuildOptions, LayerMode
from eroseal.errors import UsageError
from eroseal.limits import MAX_IMAGE_LIST, MAX_LISTED_IMAGES


def parsed(text: str) -> tuple[ListedImage, ...]:
    return parse_list(text.encode(), name="list")


def test_lines_give_images() -> None:
    found = parsed(
        "# a comment with an apostrophe: don't\n"
        "\n"
        "tree dir:store:app\r\n"
        "  docker://localhost:5000/app:3\tdir:store:app-3  platform=linux/arm64 layers=stack # it's one\n"
        "'a b' \"dir:my store:x\" base=dir:store:app base=dir:store:app-3 blobs=file\n"
        "a\\ b single.erofs"
    )
    assert found == (
        ListedImage(line=3, source="tree", target="dir:store:app"),
        ListedImage(
            line=4,
            source="docker://localhost:5000/app:3",
            target="dir:store:app-3",
            platform="linux/arm64",
            layers=LayerMode.STACK,
        ),
        ListedImage(
            line=5,
            source="a b",
            target="dir:my store:x",
            bases=("dir:store:app", "dir:store:app-3"),
            blobs=BlobLayout.FILE,
        ),
        ListedImage(line=6, source="a b", target="single.erofs"),
    )


def test_an_empty_list_is_a_list() -> None:
    assert parsed("") == parsed("# nothing\n \n") == ()


def test_names_may_hold_what_begins_comments() -> None:
    [image] = parsed("tree#1 dir:store#2:app #comment")
    assert (image.source, image.target) == ("tree#1", "dir:store#2:app")
    assert parsed("tree '#target'")[0].target == "#target"


def test_names_are_bytes() -> None:
    [image] = parse_list(b"tree\xff\xc2\xa0x dir:store:app", name="list")
    assert os.fsencode(image.source) == b"tree\xff\xc2\xa0x"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tree", "no target"),
        ("tree dir:store:.hidden", "not an image name"),
        ("tree dir:store", "not a store reference"),
        ("tree ftp://host/x:y", "unknown kind"),
        ("tree https://host/store:app", "can only be read"),
        ("- dir:store:app", "standard input"),
        ("'' dir:store:app", "empty"),
        ("tree ''", "empty"),
        ("'tree dir:store:app", "does not end"),
        ('"tree dir:store:app', "does not end"),
        ('"tree\\" dir:store:app', "does not end"),
        ("tree dir:store:app \\", "backslash"),
        ("tree dir:store:app more", "not KEY=VALUE"),
        ("tree dir:store:app base=", "not KEY=VALUE"),
        ("tree dir:store:app key=value", "not KEY=VALUE"),
        ("tree dir:store:app BASE=dir:store:x", "not KEY=VALUE"),
        ("tree dir:store:app base=dir:store:.x", "not an image name"),
        ("tree dir:store:app layers=flat", "none of merge, stack"),
        ("tree dir:store:app blobs=", "not KEY=VALUE"),
        ("tree dir:store:app blobs=one", "none of none, build, layer, file"),
        ("tree dir:store:app layers=merge layers=merge", "given twice"),
        ("tree dir:store:app\0", "NUL"),
        ("tree dir:store:first", "line 1, too"),
    ],
)
def test_lines_that_are_refused(line: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        parsed(f"tree dir:store:first\n# comment\n{line}\n")
    assert caught.value.where == "list:3"


def test_bounds() -> None:
    with pytest.raises(UsageError, match=f"more than {MAX_IMAGE_LIST} bytes"):
        parse_list(b"#" * (MAX_IMAGE_LIST + 1), name="list")
    lines = "".join(f"t f{number}\n" for number in range(MAX_LISTED_IMAGES))
    assert len(parsed(lines)) == MAX_LISTED_IMAGES
    with pytest.raises(UsageError, match=rf"list:{MAX_LISTED_IMAGES + 1}: more than {MAX_LISTED_IMAGES} images"):
        parsed(f"{lines}t more\n")


def test_quotes_without_end_cost_no_time() -> None:
    with pytest.raises(UsageError, match="does not end"):
        parsed("a" * (1 << 20) + "'" + "\\" * (1 << 20))


def test_options_of_a_line_win() -> None:
    options = BuildOptions(layers=LayerMode.STACK, blobs=BlobLayout.LAYER)
    first, second, single = (
        image.job(options, directory="/place", platform="linux/386")
        for image in parsed(
            "oci:tree:v1 dir:store:a\n"
            "docker-archive:x dir:/store:b layers=merge blobs=file platform=linux/arm\n"
            "tree ../one.erofs"
        )
    )
    assert (first.options.layers, first.options.blobs, first.platform) == (
        LayerMode.STACK,
        BlobLayout.LAYER,
        "linux/386",
    )
    assert (second.options.layers, second.options.blobs, second.platform) == (
        LayerMode.MERGE,
        BlobLayout.FILE,
        "linux/arm",
    )
    assert single.options.blobs is BlobLayout.NONE
    assert [item.source_text for item in (first, second, single)] == [
        "oci:/place/tree:v1",
        "docker-archive:/place/x",
        "/place/tree",
    ]
    assert [str(item.reference) for item in (first, second, single)] == [
        "dir:/place/store:a",
        "dir:/store:b",
        "/one.erofs",
    ]
