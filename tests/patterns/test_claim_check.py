"""Claim Check: what is large lies in a store, whole, before anybody is told; handlers notice nothing."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from tests.patterns import claim_worker
from tests.patterns.killing import ROUNDS
from tests.servers import server
from tests.transports.consuming import until

from tidings import App, Backoff, BusError, Message, Router, Topic
from tidings.kernel.errors import InvalidOption, MissingExtra, Undecodable, Unsupported
from tidings.kernel.message import new_id
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import Blobs, ClaimCheck, FolderBlobs, FsspecBlobs, SharedBlobs

ROOT, SHARED = Path(__file__).parents[2], Path("/dev/shm")


class Film(Struct):
    title: str
    frames: str = ""


films = Topic("films.made", Film)
shown = Topic("films.shown", Film)
LARGE, SMALL = Film("Metropolis", "x" * 10_000), Film("Roundhay Garden Scene")
QUICK = Backoff(first=0.001, jitter=0, attempts=3)


STORES: dict[str, Callable[[Path], Blobs]] = {
    "folder": lambda folder: FolderBlobs(folder / "deep" / "blobs"),
    "shared": lambda folder: SharedBlobs(f"test_{os.getpid()}"),
    "fsspec": lambda folder: FsspecBlobs(f"file://{folder / 'remote'}"),
    "fsspec memory": lambda folder: FsspecBlobs(f"memory://{folder}"),
}


@pytest.fixture(params=STORES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    """Each kind of store, empty, and gone afterwards."""
    if request.param == "shared" and not SHARED.is_dir():
        pytest.skip(f"no {SHARED} on this system")
    made = STORES[request.param](tmp_path)
    yield made
    if isinstance(made, SharedBlobs):
        shutil.rmtree(made.path)


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def claimed(name: str) -> Message[Any]:
    body = msgspec.json.encode({"blob": name, "size": 1, "content_type": ""})
    return Message("films.made", body, headers=(("claim-check", name),))


async def stored(app: App, pattern: str) -> list[Message[Any]]:
    bus = app.bus()
    assert isinstance(bus, Inspectable)
    return [found.message for found in await bus.peek(pattern)]


async def dead(app: App, group: str) -> Message[Any]:
    """The first dead letter of a group, once it is there."""
    async with asyncio.timeout(20):
        while not (letters := await stored(app, f"_dead.{group}")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return letters[0]


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_in_and_out_again(scheme: str, blobs: Blobs, tmp_path: Path) -> None:
    app, claims = App("cinema", url(scheme, tmp_path)), ClaimCheck(blobs, above=1000)
    came: list[Message[Film]] = []

    @app.on(films, to=shown)
    async def show(film: Film) -> Film:
        return Film(film.title + " shown", film.frames)

    @app.on(shown)
    async def see(message: Message[Film]) -> None:
        came.append(message)

    instrument(app, claims)
    async with app:
        await app.publish(films, LARGE, key="k", headers={"tenant": "a"}, id="m1")
        await app.publish_many([films(SMALL)])
        await until(lambda: len(came) == 2)
        sent = {
            message.id: message for message in [*await stored(app, "films.made"), *await stored(app, "films.shown")]
        }
    by_title = {message.data.title: message for message in came}
    assert by_title["Metropolis shown"].data.frames == LARGE.frames
    assert by_title["Metropolis shown"].headers is None
    assert (sent["m1"].key, sent["m1"].header("tenant")) == ("k", "a")
    assert sorted(len(message.body) < 250 for message in sent.values()) == [True] * 4
    name = sent["m1"].header("claim-check")
    whole = msgspec.json.encode(LARGE)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    assert name[-64:] == sha256(whole).hexdigest()
    assert name[:10] in (day, *blobs.days())
    assert blobs.get(name) == whole
    assert msgspec.json.decode(sent["m1"].body) == {
        "blob": name,
        "size": len(whole),
        "content_type": "application/json",
    }
    for day in blobs.days():
        blobs.remove(day)
    assert list(blobs.days()) == []
    with pytest.raises(FileNotFoundError):
        blobs.get(name)


async def test_a_batch_redeems_each(tmp_path: Path) -> None:
    app = App("cinema", "memory://")
    claims = ClaimCheck(FolderBlobs(tmp_path), above=1000)
    batches: list[list[Film]] = []

    @app.on(films, batch=3, backoff=QUICK)
    async def show(batch: list[Film]) -> list[Message[Film]]:
        batches.append(batch)
        return [shown(film) for film in batch]

    instrument(app, claims)
    async with app:
        lost, kept = await claims.check(films(Film("Lost", LARGE.frames))), await claims.check(films(LARGE))
        (tmp_path / lost.header("claim-check")).unlink()
        await app.publish_many([lost, films(SMALL), kept])
        await until(lambda: app.stats()["cinema.show"].handled == 2)
        sent = await stored(app, "films.shown")
        letter = await dead(app, "cinema.show")
    assert batches == [[SMALL, LARGE]]
    assert [bool(message.header("claim-check")) for message in sent] == [False, True]
    assert letter.header("claim-check") == lost.header("claim-check")


async def test_a_missing_blob_is_a_failure_and_its_dead_letter_replays(tmp_path: Path) -> None:
    app, claims = App("cinema", url("sqlite", tmp_path), backoff=QUICK), ClaimCheck(FolderBlobs(tmp_path), above=1000)
    came: list[Film] = []

    @app.on(films, middleware=[claims])
    async def show(film: Film) -> None:
        came.append(film)

    async with app:
        draft = await claims.check(films(LARGE))
        blob = tmp_path / draft.header("claim-check")
        body = blob.read_bytes()
        blob.unlink()
        await app.publish(draft)
        letter = await dead(app, "cinema.show")
        assert app.stats()["cinema.show"].failed == 3
        blob.write_bytes(body)
        app_url = f"sqlite:///{tmp_path / 'bus.db'}"
        command = [str(Path(sys.executable).with_name("tidings")), "dead", "replay", "--all", "--url", app_url]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        assert await process.wait() == 0
        await until(lambda: came == [LARGE])
    assert letter.header("tdgerror") == "BusError"
    assert f"the blob {draft.header('claim-check')} of a claim is missing" in letter.header("tdgdetail")
    assert "tidings dead replay" in letter.header("tdgdetail")


async def test_a_damaged_blob_is_noticed(tmp_path: Path) -> None:
    claims = ClaimCheck(FolderBlobs(tmp_path), above=1000)
    draft = await claims.check(films(LARGE))
    blob = tmp_path / draft.header("claim-check")
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(BusError, match="is damaged"):
        await claims.incoming(draft)
    again = await claims.check(films(LARGE))
    assert (await claims.incoming(again)).body == msgspec.json.encode(LARGE)


@pytest.mark.parametrize("name", ["../../etc/passwd", "2026-11-27/../x", "/etc/passwd", "2026-11-27/" + "A" * 64])
@pytest.mark.parametrize("agreed", [True, False])
async def test_a_forged_claim_reads_nothing(name: str, agreed: bool, tmp_path: Path) -> None:
    claims = ClaimCheck(FolderBlobs(tmp_path))
    body = msgspec.json.encode({"blob": name if agreed else "2026-11-27/" + "a" * 64, "size": 1, "content_type": ""})
    with pytest.raises(Undecodable, match="is no claim"):
        await claims.incoming(Message("films.made", body, headers=(("claim-check", name),)))
    with pytest.raises(Undecodable, match="is no claim"):
        await claims.incoming(Message("films.made", b"{}", headers=(("claim-check", name),)))


async def test_who_knows_no_claims_does_not_take_one_for_a_payload(tmp_path: Path) -> None:
    app, claims = App("cinema", "memory://"), ClaimCheck(FolderBlobs(tmp_path), above=1000)

    @app.on(films)
    async def show(film: Film) -> None: ...

    async with app:
        await app.publish(await claims.check(films(LARGE)))
        letter = await dead(app, "cinema.show")
    assert "claim-check' cannot be read as Film" in letter.header("tdgdetail")


async def test_requests_and_replies_are_left_alone(tmp_path: Path) -> None:
    app, claims = App("cinema", "memory://"), ClaimCheck(FolderBlobs(tmp_path), above=1000)

    @app.answer("echo")
    async def echo(film: Film) -> Film:
        return film

    instrument(app, claims)
    async with app:
        assert await app.request("echo", LARGE, Film) == LARGE
    assert files(tmp_path) == set()


async def test_what_is_published_in_a_transaction_is_checked_in_too(tmp_path: Path) -> None:
    app = App("cinema", "memory://")
    instrument(app, ClaimCheck(FolderBlobs(tmp_path), above=1000))
    async with app:
        with pytest.raises(Unsupported):  # memory has no transactions; what is refused leaves a blob that is collected
            await app.publish_in(None, films(LARGE))
    assert len(files(tmp_path)) == 1


async def test_in_a_thread_and_with_an_app_s_own_middleware(tmp_path: Path) -> None:
    claims = ClaimCheck(FolderBlobs(tmp_path), above=1000)
    app, came = App("cinema", "memory://", middleware=[claims]), list[Film]()

    @app.on(films, run="thread", to=shown)
    def show(film: Film) -> Film:
        return film

    @app.on(shown)
    def see(film: Film) -> None:
        came.append(film)

    async with app:
        await app.publish(await claims.check(films(LARGE)))
        await until(lambda: came == [LARGE])
        assert [bool(message.header("claim-check")) for message in await stored(app, "films.>")] == [True, True]


@pytest.mark.parametrize("batch", [False, True])
async def test_without_its_blob_nothing_is_published(batch: bool, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    app, claims = App("cinema", "memory://", backoff=QUICK), ClaimCheck(FolderBlobs(tmp_path / "blobs"), above=1000)
    grown = Film("Grown", LARGE.frames)
    if batch:

        @app.on(films, batch=5, group="cinema.show")
        async def show_many(batch: list[Film]) -> list[Message[Film]]:
            return [shown(grown) for _ in batch]

    else:

        @app.on(films, to=shown)
        async def show(film: Film) -> Film:
            return grown

    instrument(app, claims)
    async with app:
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            await app.publish(films, LARGE)
        await app.publish(films, SMALL)
        letter = await dead(app, "cinema.show")
        assert await stored(app, "films.shown") == []
    assert (letter.header("tdgreason"), letter.body) == ("failed", msgspec.json.encode(SMALL))


async def test_two_of_the_same_share_a_blob(tmp_path: Path) -> None:
    claims = ClaimCheck(FolderBlobs(tmp_path), above=1000)
    first, second = await claims.check(films(LARGE)), await claims.check(shown(LARGE))
    if first.header("claim-check") == second.header("claim-check"):  # not over midnight
        assert len(files(tmp_path)) == 1
    assert await claims.check(first) is first


async def test_old_blobs_are_collected_by_the_day(tmp_path: Path) -> None:
    claims, today = ClaimCheck(FolderBlobs(tmp_path), above=1000, keep="7d"), datetime.now(UTC)
    ages = {f"{today - timedelta(days=days):%Y-%m-%d}": days for days in range(12)}
    for day in (*ages, "lost+found"):
        claims.blobs.put(f"{day}/{'a' * 64}", b"blob")
    assert await claims.collect() == 4
    left = set(claims.blobs.days())
    assert {ages.get(day) for day in left} == {*range(8), None}
    with pytest.raises(BusError, match="is missing"):
        await claims.incoming(claimed(f"{today - timedelta(days=8):%Y-%m-%d}/{'a' * 64}"))
    assert await claims.collect() == 0


def test_collecting_an_empty_store(blobs: Blobs) -> None:
    assert asyncio.run(ClaimCheck(blobs).collect()) == 0


async def test_a_delay_past_the_end_of_its_blob_is_refused(tmp_path: Path) -> None:
    claims = ClaimCheck(FolderBlobs(tmp_path), above=1000, keep="7d")
    with pytest.raises(InvalidOption, match="when its blob may be gone"):
        await claims.check(films(LARGE, delay="8d"))
    with pytest.raises(InvalidOption, match="when its blob may be gone"):
        await claims.check(films(LARGE, at=datetime.now(UTC) + timedelta(days=8)))
    assert (await claims.check(films(LARGE, delay="6d"))).header("claim-check")


@pytest.mark.parametrize("above", ["64 kilobytes", "", -1, "1.5MiB"])
def test_a_size_that_is_none_is_refused(above: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="above cannot be"):
        ClaimCheck(FolderBlobs(tmp_path), above=above)


def test_sizes(tmp_path: Path) -> None:
    assert [ClaimCheck(FolderBlobs(tmp_path), above=size).above for size in (10, "10", "64KiB", "2MiB")] == [
        10,
        10,
        65_536,
        2_097_152,
    ]


def test_stores_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"no memory can be shared as '\.\./x'"):
        SharedBlobs("../x")
    with pytest.raises(InvalidOption, match="is no store"):
        FsspecBlobs("nonsense://x")
    with pytest.raises(MissingExtra, match="needs a package"):
        FsspecBlobs("s3://bucket/blobs")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED} on this system")
def test_memory_of_somebody_else_is_not_shared(tmp_path: Path) -> None:
    name = f"test_link_{os.getpid()}"
    link = SHARED / f"tidings-{name}"
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(InvalidOption, match="belongs to somebody else"):
            SharedBlobs(name)
    finally:
        link.unlink()


def test_a_write_that_fails_leaves_no_blob(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with pytest.raises(TypeError):
        blobs.put("2026-11-27/" + "a" * 64, "no bytes")  # type: ignore[arg-type]
    assert files(tmp_path) == set()


def test_who_reads_while_it_is_written_sees_all_or_nothing(tmp_path: Path) -> None:
    blobs, body, names = FolderBlobs(tmp_path), bytes(4_000_000), [f"2026-11-27/{n:064x}" for n in range(10)]

    def write() -> None:
        for name in names:
            blobs.put(name, body)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for name in names:
        while not (tmp_path / name).exists():
            assert writer.is_alive() or (tmp_path / name).exists()
        seen.append(len(blobs.get(name)))
    writer.join()
    assert seen == [len(body)] * len(names)


def test_it_goes_with_routers() -> None:
    router = Router()
    claims = ClaimCheck(FolderBlobs("never-made"))

    @router.on(films, middleware=[claims])
    def show(film: Film) -> None: ...

    assert router.registrations[0].middleware == (claims,)
    assert not Path("never-made").exists()


@pytest.mark.slow
@pytest.mark.timeout(30 * ROUNDS)
@pytest.mark.parametrize("bus", ["sqlite", "postgres", "nats"])
async def test_killed_at_any_moment_no_claim_points_to_nothing(bus: str, tmp_path: Path) -> None:
    """Processes that are killed by -9 while they check in and publish; then one that finishes their work."""
    luck, accepted, name = random.Random(6), list[str](), f"t{new_id().partition('-')[0]}"
    where, folder = url("sqlite", tmp_path) if bus == "sqlite" else server(bus).url, tmp_path / "blobs"
    for round in range(ROUNDS):
        command = [sys.executable, "-m", "tests.patterns.claim_worker", where, name, str(folder), str(round)]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(luck.randint(1, 6)):
            accepted.append((await process.stdout.readline()).decode().strip())
        await asyncio.sleep(luck.uniform(0, 0.02))  # any moment of the next ones
        process.kill()
        accepted += (await process.stdout.read()).decode().split()
        assert await process.wait() == -9
    sent, turned = await finished(where, name, folder, len(set(accepted)))
    assert set(sent) >= set(accepted)
    assert all(message.data == claim_worker.body(id) for id, message in sent.items())
    assert sorted(str(message.causation_id) for message in turned.values()) == sorted(sent)
    assert all(m.data == claim_worker.body(str(m.causation_id))[::-1] for m in turned.values())
    bodies = [message.data for message in (*sent.values(), *turned.values())]
    assert {sha256(body).hexdigest() for body in bodies} < files(folder), "none was killed between blob and claim"


async def finished(where: str, name: str, folder: Path, accepted: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was published, and what was made of it, by id, once all that was left is handled and redeemed."""
    app, _ = claim_worker.made(where, name, folder)
    found: tuple[dict[str, Message[bytes]], dict[str, Message[bytes]]] = {}, {}

    for topic, came in zip(claim_worker.topics(name), found, strict=True):

        async def collect(message: Message[bytes], came: dict[str, Message[bytes]] = came) -> None:
            came[message.id] = message

        app.on(topic, start="first", group=f"{topic.name}.collect")(collect)
    async with app:
        await until(lambda: len(found[0]) >= accepted and len(found[0]) == len(found[1]), within=150)
        stats = app.stats().values()
        assert sum(each.failed + each.dead for each in stats) == 0, "a blob was missing, or not whole"
    return found
