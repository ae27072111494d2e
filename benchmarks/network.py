"""Pushing and pulling: Debian's docker-registry on loopback, next to skopeo and curl, and what goes over the wire."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ours
from conversion import MEMORY_ALLOWED, build_from, layered_image
from harness import Contender, Section, Target, measure, remove, run_quietly
from inputs import disk_bytes
from layered import NEXT, TAG, LayeredImage
from memory import peak_memory
from relay import Relay
from sections import MIB, Bench

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.support.registry import Registry

DELAY = 0.01
DEFAULT_PARALLEL = 16
CONNECTIONS = DEFAULT_PARALLEL + 1
"""One for documents while all ranges are under way."""
OURS, SOURCE = "ours", "source"
"""Repositories of the registry."""
_ACCEPT = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Place:
    """What is pushed, and where it is pulled to.

    Args:
        image: the source image.
        store: a native store with its sealed image and with that of the next version.
        pulled: where pulls go.
        size: bytes of the sealed image.
    """

    image: LayeredImage
    store: Path
    pulled: Path
    size: int


def pushing_and_pulling(bench: Bench) -> list[Section]:
    """All that needs a registry; a remark alone where there is none."""
    program = bench.peer("docker-registry")
    if program is None:
        section = Section("Push and pull", ("what",))
        section.remarks.append("left out: there is no docker-registry")
        return [section]
    image = layered_image(bench)
    with _running(str(program), bench.disk / "registry") as registry:
        store = bench.disk / "network"
        run_quietly(*build_from(bench, image, store=store.name))
        place = Place(image, store, bench.disk / "pulled", disk_bytes(store / "blobs"))
        base = f"dir:{store}:{TAG}"
        run_quietly(*build_from(bench, image, "--base", base, tag=NEXT, store=store.name))
        try:
            return [
                throughput(bench, place, registry),
                wire(bench, place, registry),
                latency(bench, place, registry),
            ]
        finally:
            remove(store, place.pulled)


@contextlib.contextmanager
def _running(program: str, place: Path) -> Iterator[Registry]:
    registry = Registry(program, place)
    try:
        yield registry
    finally:
        registry.stop()
        remove(place)


# --- commands ---


def push(place: Place, host: str, tag: str = TAG) -> list[str]:
    """Our image to the registry."""
    return ours.command("copy", "--no-sync", f"dir:{place.store}:{tag}", f"docker://{host}/{OURS}:{tag}")


def pull(place: Place, host: str, *options: str) -> list[str]:
    """Our image from the registry."""
    return ours.command("copy", "--no-sync", *options, f"docker://{host}/{OURS}:{TAG}", f"dir:{place.pulled}:{TAG}")


def skopeo_push(skopeo: Path, place: Place, host: str, tag: str = TAG) -> list[str | Path]:
    """The source image to the registry."""
    options = ("copy", "--quiet", "--dest-tls-verify=false")
    return [skopeo, *options, f"oci:{place.image.layout}:{tag}", f"docker://{host}/{SOURCE}:{tag}"]


def skopeo_pull(skopeo: Path, place: Place, host: str) -> list[str | Path]:
    """The source image from the registry."""
    options = ("copy", "--quiet", "--src-tls-verify=false")
    return [skopeo, *options, f"docker://{host}/{SOURCE}:{TAG}", f"oci:{place.pulled}:{TAG}"]


def curl_pull(curl: Path, place: Place, host: str) -> list[str | Path]:
    """The blobs of our image, one after the other over one connection, looked at by nobody."""
    request = urllib.request.Request(f"http://{host}/v2/{OURS}/manifests/{TAG}", headers={"Accept": _ACCEPT})
    with urllib.request.urlopen(request) as answer:
        layers = json.load(answer)["layers"]
    command: list[str | Path] = [curl, "--silent", "--fail"]
    for number, layer in enumerate(layers):
        command += ["-o", place.pulled / str(number), f"http://{host}/v2/{OURS}/blobs/{layer['digest']}"]
    return command


# --- sections ---


def throughput(bench: Bench, place: Place, registry: Registry) -> Section:
    """Seconds and MB/s of both directions."""
    empty = partial(remove, registry.root / "docker")
    pushes = [Contender("push: eroseal copy", partial(run_quietly, *push(place, registry.host)), empty)]
    skopeo, curl = bench.peer("skopeo"), bench.peer("curl")
    if skopeo:
        action = partial(run_quietly, *skopeo_push(skopeo, place, registry.host))
        pushes.append(Contender("push: skopeo copy of the source image", action, empty))
    timings = measure(pushes, rounds=bench.sizes.few_rounds)
    empty()
    for contender in pushes:
        contender.action()
    clear = partial(remove, place.pulled)
    pulls = [Contender("pull: eroseal copy", partial(run_quietly, *pull(place, registry.host)), clear)]
    if skopeo:
        action = partial(run_quietly, *skopeo_pull(skopeo, place, registry.host))
        pulls.append(Contender("pull: skopeo copy of the source image", action, clear))
    if curl:
        action = partial(run_quietly, *curl_pull(curl, place, registry.host))

        def clean() -> None:
            clear()
            place.pulled.mkdir()

        pulls.append(Contender("pull: curl, the bytes of our image", action, clean))
    timings |= measure(pulls, rounds=bench.sizes.few_rounds)
    clear()
    title = f"Push and pull over loopback, docker-registry ({place.size / MIB:,.0f} MiB; the source image "
    title += f"{place.image.compressed / MIB:,.0f} MiB)"
    section = Section(title, ("what", "wall s", "user+sys s", "MB/s", "ratio of MB/s to skopeo"), timings=timings)
    rates = {
        name: (place.image.compressed if "skopeo" in name else place.size) / timing.wall / 1e6
        for name, timing in timings.items()
    }
    for name, timing in timings.items():
        reference = rates.get(f"{name.partition(':')[0]}: skopeo copy of the source image")
        ratio = f"{rates[name] / reference:.2f}" if reference else "-"
        section.rows.append((name, f"{timing.wall:.2f}", f"{timing.processor:.2f}", f"{rates[name]:,.0f}", ratio))
    section.remarks += [
        "nobody syncs; ours verifies every block, skopeo the digests of layers, curl nothing",
        "the registry shares the processors, and hashes what it is sent; its time is in no column",
        "no target",
    ]
    return section


def wire(bench: Bench, place: Place, registry: Registry) -> Section:
    """Requests, connections and bytes of whole copies, and their memory."""
    head = ("what", "requests", "connections", "most at once", "MiB up", "MiB down", "memory MiB")
    section = Section("What goes over the wire", head)
    commands = {
        "pull": pull(place, "{}"),
        "pull again": pull(place, "{}", "--replace"),
        "push": push(place, "{}"),
        "push the next version": push(place, "{}", NEXT),
    }
    skopeo = bench.peer("skopeo")
    if skopeo:
        commands["skopeo: push the source image"] = list(map(str, skopeo_push(skopeo, place, "{}")))
        commands["skopeo: push the source's next version"] = list(map(str, skopeo_push(skopeo, place, "{}", NEXT)))
    remove(place.pulled)
    pushed = False
    for what, command in commands.items():
        if "push" in what and not pushed:
            remove(registry.root / "docker")
            pushed = True
        with Relay(registry.port) as relay:
            peak = peak_memory([part.replace("{}", relay.host) for part in command])
        counts = (relay.requests, relay.connections, relay.most)
        figures = (relay.up / MIB, relay.down / MIB)
        cells = (*map(str, counts), *(f"{figure:,.1f}" for figure in figures), f"{peak.sampled / MIB:.0f}")
        section.rows.append((what, *cells))
        if what in ("pull", "push"):
            section.targets.append(Target(f"peak memory of {what} / 200 MiB", peak.sampled / MEMORY_ALLOWED, 1.0))
            section.targets.append(
                Target(f"connections of {what} / {CONNECTIONS}", relay.connections / CONNECTIONS, 1.0)
            )
    section.remarks += [
        "counted by a relay in between; at once: requests that wait for the first byte of their answer",
        "the next version has one layer more, which changes one file in a hundred; its image is built on the first one",
        "memory: sampled every 10 ms, PSS",
    ]
    return section


def latency(bench: Bench, place: Place, registry: Registry) -> Section:
    """Pulls through a relay that delays each request: what parallel ranges are for."""
    # The sections before left the registry with both images.
    section = Section(
        f"Pull with {DELAY * 1000:.0f} ms more for each request", ("what", "wall s", "MB/s", "requests", "most at once")
    )
    rounds = bench.sizes.few_rounds
    with contextlib.ExitStack() as stack:
        relays = {
            parallel: stack.enter_context(Relay(registry.port, delay=DELAY)) for parallel in (1, 4, DEFAULT_PARALLEL)
        }
        contenders = [
            Contender(
                f"eroseal copy --parallel {parallel}",
                partial(run_quietly, *pull(place, relay.host, f"--parallel={parallel}")),
                partial(remove, place.pulled),
            )
            for parallel, relay in relays.items()
        ]
        section.timings = measure(contenders, rounds=rounds)
    for relay, (name, timing) in zip(relays.values(), section.timings.items(), strict=True):
        rate = f"{place.size / timing.wall / 1e6:,.0f}"
        section.rows.append((name, f"{timing.wall:.2f}", rate, str(relay.requests // rounds), str(relay.most)))
    remove(place.pulled)
    section.remarks += [
        "the relay is a program in Python that shares the processors: it slows all of them",
        "no target",
    ]
    return section
