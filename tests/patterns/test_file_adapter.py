"""EIP Channel Adapter for folders: whole files only, each at least once, under the same id, also through kill -9."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.patterns.files_worker import found
from tests.patterns.killing import ROUNDS
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import watch_files, write_files
from tidings.patterns.file_adapter import DONE, FAILED, TAKEN, _Folder
from tidings.testing.faults import Processes

texts = Topic("texts.found", str)
numbers = Topic("numbers.found", dict[str, int])


def watching(folder: Path, to: Topic[Any], **options: Any) -> tuple[App, list[Message[Any]]]:
    app, came = App("office", "memory://"), list[Message[Any]]()
    watch_files(app, folder, to, every="10ms", **{"settle": 0, **options})

    @app.on(to)
    async def see(message: Message[Any]) -> None:
        came.append(message)

    return app, came


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def renamed_into(folder: Path, name: str, body: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f".{name}").write_bytes(body)
    (folder / f".{name}").rename(folder / name)


async def test_a_file_is_a_message_and_then_it_is_done(tmp_path: Path) -> None:
    box = tmp_path / "in"
    app, came = watching(box, texts, pattern="*.txt")
    async with app:
        renamed_into(box, "ä b.txt", "Grüße".encode())
        renamed_into(box, "other.bin", b"x")
        await until(lambda: came, "it came")
        await until(lambda: (box / DONE / "ä b.txt").exists(), "it is done")
    (message,) = came
    assert (message.data, message.key) == ("Grüße", "ä b.txt")
    assert dict(message.headers or ()) == {"file-name": "ä b.txt", "file-size": "7"}
    assert names(box) == [DONE, FAILED, TAKEN, "other.bin"]
    assert names(box / TAKEN) == []


async def test_read_makes_the_payload(tmp_path: Path) -> None:
    app, came = watching(tmp_path, numbers, read=lambda path: json.loads(path.read_text()))
    async with app:
        renamed_into(tmp_path, "a.json", b'{"n": 3}')
        await until(lambda: came, "it came")
    assert came[0].data == {"n": 3}


def test_what_is_still_written_is_not_taken(tmp_path: Path) -> None:
    folder, slow = _Folder(tmp_path, "*", 0.05, ""), tmp_path / "slow.csv"
    slow.write_text("1,")
    os.utime(slow, ns=(1, 1))
    assert folder.take() == []
    for text in ("1,2", "1,2,3"):
        while folder.seen["slow.csv"][1] + 0.05 > time.monotonic():
            pass
        slow.write_text(text)
        assert folder.take() == [], "it has changed since the last look"
    while not (taken := folder.take()):
        pass
    assert [path.read_text() for path in taken] == ["1,2,3"]


def test_a_marker_says_that_it_is_complete(tmp_path: Path) -> None:
    folder = _Folder(tmp_path, "*", 0.0, ".ok")
    (tmp_path / "a.csv").write_text("1")
    assert folder.take() == []
    (tmp_path / "a.csv.ok").touch()
    assert [path.name for path in folder.take()] == ["a.csv"]
    assert not (tmp_path / "a.csv.ok").exists()


async def test_what_cannot_be_read_is_put_aside_with_the_reason(tmp_path: Path) -> None:
    app, came = watching(tmp_path, numbers, read=lambda path: json.loads(path.read_text()))
    async with app:
        for _ in range(2):
            renamed_into(tmp_path, "bad.json", b"{")
            await until(lambda: not (tmp_path / "bad.json").exists(), "it was taken")
            await until(lambda: not names(tmp_path / TAKEN), "it was put aside")
        renamed_into(tmp_path, "good.json", b"{}")
        await until(lambda: came, "the next one came")
    assert names(tmp_path / FAILED) == ["bad.json", "bad.json.1", "bad.json.1.why", "bad.json.why"]
    assert "JSONDecodeError" in (tmp_path / FAILED / "bad.json.why").read_text()
    assert len(came) == 1


async def test_the_same_name_again_is_another_message(tmp_path: Path) -> None:
    app, came = watching(tmp_path, texts)
    async with app:
        for number in range(3):
            renamed_into(tmp_path, "a.txt", str(number).encode())
            await until(lambda: len(came) == number + 1, "it came")  # noqa: B023
        await until(lambda: not names(tmp_path / TAKEN), "all done")
    assert [message.data for message in came] == ["0", "1", "2"]
    assert len({message.id for message in came}) == 3
    assert names(tmp_path / DONE) == ["a.txt", "a.txt.1", "a.txt.2"]


async def test_what_a_dead_process_had_taken_comes_again_with_its_id(tmp_path: Path) -> None:
    app, came = watching(tmp_path, texts)
    async with app:
        renamed_into(tmp_path, "a.txt", b"1")
        await until(lambda: names(tmp_path / DONE) == ["a.txt"], "it is done")
        (tmp_path / DONE / "a.txt").rename(tmp_path / TAKEN / "a.txt")  # as if it had died just before
        await until(lambda: len(came) == 2, "it came again")
    assert came[0].id == came[1].id


async def test_several_may_watch_one_folder(tmp_path: Path) -> None:
    apps = [watching(tmp_path, texts) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for app, _ in apps:
            await stack.enter_async_context(app)
        for number in range(60):
            renamed_into(tmp_path, f"{number}.txt", str(number).encode())
        await until(lambda: len(names(tmp_path / DONE)) == 60, "all are done")
        await until(lambda: sum(len(came) for _, came in apps) >= 60, "all came")
    assert sorted(int(message.data) for _, came in apps for message in came) == list(range(60))


async def test_messages_become_files(tmp_path: Path) -> None:
    app = App("office", "memory://")
    write_files(app, numbers, tmp_path / "out", name=lambda message: f"{message.key}.json")
    async with app:
        await app.publish(numbers, {"n": 1}, key="a")
        await app.publish(numbers, {"n": 2}, key="a")
        await app.publish(numbers, {"n": 3}, key="../b")
        await until(lambda: app.stats()["office.write-out"].handled == 2, "both were written")
        await until(lambda: app.stats()["office.write-out"].dead == 1, "one leads elsewhere")
    assert names(tmp_path / "out") == ["a.json"]
    assert (tmp_path / "out" / "a.json").read_bytes() == b'{"n":2}'


async def test_from_folder_to_folder(tmp_path: Path) -> None:
    app, bodies = App("office", "memory://"), {f"{n}.bin": os.urandom(1000 * n) for n in range(20)}
    watch_files(app, tmp_path / "in", found, every="10ms", settle=0)
    write_files(app, found, tmp_path / "out", name=lambda message: message.key or "", group="office.copy")
    async with app:
        for name, body in bodies.items():
            renamed_into(tmp_path / "in", name, body)
        await until(lambda: app.stats()["office.copy"].handled == 20, "all were written")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == bodies


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        (numbers, {}, "read="),
        (Topic("files.>", bytes), {}, "cannot be published to"),
        (texts, {"settle": "soon"}, "settle cannot be 'soon'"),
        (texts, {"every": 0}, "an interval cannot be 0"),
    ],
)
def test_refused_at_the_line(tmp_path: Path, to: Topic[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        watch_files(App("office", "memory://"), tmp_path, to, **options)


async def through_kills(folder: Path, rounds: int, seed: int) -> None:
    """The watcher dies in each round; then look at what came."""
    luck, box, url, each = Random(seed), folder / "in", f"sqlite:///{folder}/bus.db", 20
    came, deaths = defaultdict[str | None, set[tuple[str, bytes]]](set), 0
    office = App("office", url)

    @office.on(found)
    async def see(message: Message[bytes]) -> None:
        came[message.key].add((message.id, message.data))

    async with office, Processes() as processes:
        for number in range(rounds):
            for n in range(number * each, (number + 1) * each):
                renamed_into(box, f"{n}.txt", str(n).encode())
            plan = f"{luck.choice(('begin', 'commit.before', 'commit.after'))}=kill@{luck.randint(2, each)}"
            process = await processes.start("tests.patterns.files_worker", url, str(box), points=plan)
            await until(lambda: process.over or len(names(box / DONE)) == (number + 1) * each, plan, 60.0)  # noqa: B023
            deaths += not process.kill()
            await process.wait()
        process = await processes.start("tests.patterns.files_worker", url, str(box))
        await process.line("ready")
        await until(lambda: len(names(box / DONE)) == rounds * each, "all are done", 60.0)
        await until(lambda: len(came) == rounds * each, "all came")
    assert deaths > rounds / 2, "it did not die while it worked"
    assert {key: {body for _, body in seen} for key, seen in came.items()} == {
        f"{n}.txt": {str(n).encode()} for n in range(rounds * each)
    }
    assert all(len(seen) == 1 for seen in came.values()), "a file came under two ids"


async def test_killed_it_tells_every_file_under_one_id(tmp_path: Path) -> None:
    await through_kills(tmp_path, rounds=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_many_times(tmp_path: Path) -> None:
    await through_kills(tmp_path, rounds=ROUNDS, seed=2)
