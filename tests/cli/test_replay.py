"""``tidings replay``: files and retained messages, in time order, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.servers import fresh

from .conftest import Shell

AIR = """\
year,month,day,hour,station,pm,code
2013,3,1,0,A b,4.50,007
2013,3,1,1,B,NA,12
2013,3,1,1,B,-1e2,true
"""
TIMED = ("--topic", "air.{station}", "--time-field", "year,month,day,hour")
DATA = Path("/work/shared/data")


def published(shell: Shell, pattern: str, count: int, *words: str) -> list[dict[str, Any]]:
    lines = shell("tail", pattern, "--since", "first", "--limit", str(count), "--json", *words).out.splitlines()
    return [json.loads(line) for line in lines]


def test_csv(shell: Shell) -> None:
    shell.write("air.csv", AIR)
    done = shell("replay", "air.csv", *TIMED, "--key", "code", "--null", "NA")
    assert re.fullmatch(r"published 3 messages to air\.\{station\} on sqlite:////.*/shop\.db in .* s\n", done.out)
    first, second, third = published(shell, "air.>", 3)
    assert first["data"] == {"year": 2013, "month": 3, "day": 1, "hour": 0, "station": "A b", "pm": 4.5, "code": "007"}
    assert [e["tdgtopic"] for e in (first, second, third)] == ["air.A%20b", "air.B", "air.B"]
    assert [e["time"][:19] for e in (first, second)] == ["2013-03-01T00:00:00", "2013-03-01T01:00:00"]
    assert [e["partitionkey"] for e in (first, second)] == ["007", "12"]
    assert (second["data"]["pm"], third["data"]["pm"], third["data"]["code"]) == (None, -100, True)
    assert first["type"] == "air.{station}"


def test_text_zones_and_other_delimiters(shell: Shell) -> None:
    shell.write("a.csv", '\ufeffwhen;n;"t,x"\r\n1/7/2020 12:00;1;"a;""b""\nc"\r\n')
    words = ("--time-field", "when", "--time-format", "%d/%m/%Y %H:%M", "--zone", "Europe/Berlin", "--text")
    shell("replay", "a.csv", "--topic", "a", *words)
    (event,) = published(shell, "a", 1)
    assert event["data"] == {"when": "1/7/2020 12:00", "n": "1", "t,x": 'a;"b"\nc'}
    assert event["time"] == "2020-07-01T10:00:00.000Z"


def test_formats_of_times(shell: Shell) -> None:
    cases = [
        ("%d.%m.%Y", "1.12.2020", "2020-12-01T00:00:00.000Z"),
        ("%Y-%m-%d at %H:%M:%S", "2020-1-02 at 3:04:5", "2020-01-02T03:04:05.000Z"),
        ("%Y-%m-%d %H:%M", "2020-01-02  03:04", "2020-01-02T03:04:00.000Z"),
        ("%H:%M %b %d %Y", "03:04 Feb 1 2020", "2020-02-01T03:04:00.000Z"),
        ("%Y%m%d", "20200203", "2020-02-03T00:00:00.000Z"),
        ("%Y-%m-%dT%H:%M%z", "2020-03-01T12:00+0200", "2020-03-01T10:00:00.000Z"),
        ("%d.%m.%Y", "31.2.2020", None),
        ("%d.%m.%Y", "1.2.20", None),
        ("%d.%m.%Y", "1.2.2020 ", None),
        ("%d.%m.%Y %d", "1.2.2020 1", None),
        ("%d.%m.%Y%", "1.2.2020", None),
    ]
    for n, (_, text, _) in enumerate(cases):
        shell.write(f"{n}.csv", f"when\n{text}\n")
    words = ("--topic", "a", "--time-field", "when", "--dry-run", "--json", "--time-format")
    results = shell.all([["replay", f"{n}.csv", *words, form] for n, (form, _, _) in enumerate(cases)])
    for (_, text, time), (code, out, err, _) in zip(cases, results, strict=True):
        if time is not None:
            assert json.loads(out)["first"] == time
        else:
            assert (code, f"line 2: '{text}' is no time" in err) == (2, True)


def test_numbers_that_readers_could_not_hold(shell: Shell) -> None:
    """No handler reads 1e999; and an integer of 19 digits and more is another one to who reads it as a float."""
    shell.write("a.csv", f"a,b,c,d,e,f\n1e999,-1e400,{'9' * 18},-{'1' * 19},1e300,0.{'1' * 20}\n")
    shell("replay", "a.csv", "--topic", "a")
    line = shell("tail", "a", "--since", "first", "--limit", "1").out
    numbers = f'"c":{"9" * 18},"d":"-{"1" * 19}","e":1e300,"f":0.{"1" * 20}'
    assert f'{{"a":"1e999","b":"-1e400",{numbers}}}' in line


def test_json_lines_and_standard_input(shell: Shell) -> None:
    records = b'{"at": 1700000000, "who": {"id": 7}}\n\n{"at": 1700000000500, "who": {"id": "x.y"}}'
    words = ("-", "--topic", "who.{who.id}", "--key", "who.id", "--time-field", "at")
    assert shell("replay", *words, "--json", input=gzip.compress(records)).json["published"] == 2
    first, second = published(shell, "who.*", 2)
    assert (first["tdgtopic"], first["partitionkey"], first["data"]) == (
        "who.7",
        "7",
        {"at": 1700000000, "who": {"id": 7}},
    )
    assert (second["tdgtopic"], second["time"]) == ("who.x%2Ey", "2023-11-14T22:13:20.500Z")


def test_files_are_merged_in_time_order(shell: Shell) -> None:
    for name, hours in (("a.csv", (0, 2, 4, 5)), ("b.csv", (1, 2, 3))):
        lines = [f"2013-03-01T0{hour}:00,{name},{n}" for n, hour in enumerate(hours)]
        shell.write(name, "\n".join(["at,file,n", *lines]))
    shell("replay", "a.csv", "b.csv", "--topic", "a", "--time-field", "at")
    order = [(e["data"]["file"][0], e["data"]["n"]) for e in published(shell, "a", 7)]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3)]


def test_what_is_in_no_order_is_sorted_on_demand(shell: Shell) -> None:
    shell.write("a.csv", "at,n\n3,0\n1,1\n2,2\n1,3\n")
    words = ("replay", "a.csv", "--topic", "a", "--time-field", "at")
    refused = shell(*words, code=2).err
    assert "a.csv, line 3: it is earlier than line 2" in refused
    assert "--sort" in refused
    shell(*words, "--sort")
    assert [e["data"]["n"] for e in published(shell, "a", 4)] == [1, 3, 2, 0]


def test_files_of_several_kinds_are_sorted_together(shell: Shell) -> None:
    """A body is made after the sorting, of what stands in its own file: one, or a record of several lines."""
    shell.write("a.csv", 'at,n,text\n3,0,"a ""b"",\r\n\nc"\n\n1,1,plain\n')
    (shell.folder / "b.csv").write_bytes("\ufeffn;at\r\n2;2\r\n3;0.5".encode())
    shell.write("c.jsonl", '{"at": 2.5, "n": 4}\n{"at":0,"n":5}')
    shell.write("d.csv", 'n,at\n6,4\n7,"5')
    shell("replay", "a.csv", "b.csv", "c.jsonl", "d.csv", "--topic", "a", "--time-field", "at", "--key", "n", "--sort")
    events = published(shell, "a", 8)
    assert [e["data"]["n"] for e in events] == [5, 3, 1, 2, 4, 0, 6, 7]
    assert [e["partitionkey"] for e in events] == list("53124067")
    assert [e["data"].get("text") for e in (events[2], events[5])] == ["plain", 'a "b",\r\n\nc']
    assert [e["data"] for e in events[1:4:2]] == [{"n": 3, "at": 0.5}, {"n": 2, "at": 2}]


def test_bad_lines_are_found_before_anything_is_sorted(shell: Shell) -> None:
    (shell.folder / "a.csv").write_bytes(b'at,n\n4,\xff\n2,"x\ny"\n1\n3,3\nsoon,5\n')
    words = ("replay", "a.csv", "--topic", "a", "--time-field", "at", "--sort")
    assert "a.csv, line 2: it is no UTF-8" in shell(*words, code=2).err
    assert list(shell.folder.glob("*.db")) == []
    told = shell(*words, "--skip-bad", "--limit", "1", "--json").json
    assert (told["published"], told["skipped"]) == (1, 3)
    assert published(shell, "a", 1)[0]["data"] == {"at": 2, "n": "x\ny"}


def test_many_are_sorted_on_disk(shell: Shell) -> None:
    count = 250_000
    shell.write("a.csv", "at\n" + "\n".join(str(1_000_000 + n * 7_919 % count) for n in range(count)))
    shell("replay", "a.csv", "--topic", "a", "--time-field", "at", "--sort", "--limit", "3000")
    assert [e["data"]["at"] for e in published(shell, "a", 3_000)] == [1_000_000 + n for n in range(3_000)]


def test_at_speed(shell: Shell) -> None:
    """Twenty seconds of readings in one: none before it is due."""
    shell.write("a.csv", "at\n" + "\n".join(map(str, range(1_000, 1_021))))
    done = shell("replay", "a.csv", "--topic", "a", "--time-field", "at", "--speed", "20", "--json").json
    assert done["published"] == 21
    assert done["seconds"] >= 1.0


BAD = "at,n,who\n1,1,a\n2,2\nsoon,3,a\n4,4,\n5,5,\xff\n6,6,b\n".encode("latin-1")


def test_bad_lines(shell: Shell) -> None:
    (shell.folder / "a.csv").write_bytes(BAD)
    words = ("replay", "a.csv", "--topic", "a.{who}", "--time-field", "at")
    refused = shell(*words, code=2)
    assert "a.csv, line 3: it has 2 fields, and the heading 3" in refused.err
    assert (refused.out, list(shell.folder.glob("*.db"))) == ("", [])
    told = shell(*words, "--skip-bad", "--json").json
    assert (told["published"], told["skipped"]) == (2, 4)
    assert [e["data"]["n"] for e in published(shell, "a.*", 2)] == [1, 6]
    for text, said in (
        ("1,1,a\nsoon,1,a", "line 3: 'soon' is no time"),
        ("1,1,", "line 2: no topic can be made of who"),
    ):
        shell.write("b.csv", f"at,n,who\n{text}\n")
        assert said in shell("replay", "b.csv", *words[2:], code=2).err


def test_bad_json_lines(shell: Shell) -> None:
    shell.write("a.jsonl", '{"n": 1}\n{"n": 2\n[3]\n{"m": 4}\n{"n": 5}\n')
    words = ("a.jsonl", "--topic", "a.{n}")
    assert "a.jsonl, line 2: it is no JSON object" in shell("replay", *words, code=2).err
    assert shell("replay", *words, "--skip-bad", "--json", "--dry-run").json["topics"] == {"a.1": 1, "a.5": 1}


def test_what_went_before_is_told(shell: Shell) -> None:
    """A pipe: nobody knows what is still to come."""
    refused = shell("replay", "-", "--topic", "a", input='{"n": 1}\n' * 30_000 + "{", code=2)
    assert "line 30,001: it is no JSON object" in refused.err
    count = int(re.search(r"([\d,]+) messages were published before that", refused.err)[1].replace(",", ""))  # type: ignore[index]
    assert count == len(published(shell, "a", count)) == 30_000


def test_bad_lines_of_a_large_file(shell: Shell) -> None:
    """Its lines are read in a process of their own; what is wrong is told here."""
    good, count = '{"text": "' + "x" * 90 + '"}\n', 30_000
    shell.write("a.jsonl", good * count + "{\n" + good)
    refused = shell("replay", "a.jsonl", "--topic", "a", code=2).err
    assert "a.jsonl, line 30,001: it is no JSON object" in refused
    assert "30,000 messages were published before that" in refused
    told = shell("replay", "a.jsonl", "--topic", "b", "--skip-bad", "--json").json
    assert (told["published"], told["skipped"]) == (count + 1, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"a,b,a\n1,2,3\n", "it has two columns 'a'"),
        (b"\xff\xfea\n", "it is no UTF-8"),
        (b'[{"a": 1}]', "is a JSON array"),
        (None, "Is a directory"),
    ],
)
def test_what_is_no_file_of_records(shell: Shell, content: bytes | None, said: str) -> None:
    if content is None:
        (shell.folder / "a").mkdir()
    else:
        (shell.folder / "a").write_bytes(content)
    assert said in shell("replay", "a", "--topic", "b", code=2).err


def test_half_a_gzip(shell: Shell) -> None:
    (shell.folder / "a.gz").write_bytes(gzip.compress(AIR.encode() * 999)[:-20])
    assert "a.gz cannot be read to its end" in shell("replay", "a.gz", *TIMED, code=2).err


def test_dry_run_leaves_nothing(shell: Shell) -> None:
    shell.write("air.csv", AIR)
    told = shell("replay", "air.csv", *TIMED, "--dry-run")
    first, second, third = told.out.splitlines()
    assert first.startswith("would publish 3 messages to air.{station} on sqlite:///")
    assert first.endswith("2013-03-01T00:00:00.000Z to 2013-03-01T01:00:00.000Z")
    assert [second.split(), third.split()] == [["2", "air.B"], ["1", "air.A%20b"]]
    assert not (shell.folder / "shop.db").exists()


def test_a_bar_on_a_terminal_and_lines_in_a_pipe(shell: Shell) -> None:
    shell.write("air.csv", AIR + "2013,3,1,2,C,1,1\n" * 200_000)
    shown = shell.on_terminal("replay", "air.csv", *TIMED).out
    assert re.search(r"━.*messages, [\d,]+/s", shown)
    assert re.search(r"published 200,003 messages to .* s \([\d,]+/s\)\n", shown)


# -- from a bus


def test_from_a_topic_to_another(shell: Shell) -> None:
    shell.write("air.csv", AIR)
    shell("replay", "air.csv", *TIMED, "--key", "station")
    words = ("replay", "--from", "air.*", "--topic", "again.{topic}", "--json")
    assert shell(*words, "--dry-run").json["topics"] == {"again.air.A%20b": 1, "again.air.B": 2}
    assert shell(*words).json["published"] == 3
    assert shell(*words, "--since", "2013-03-01T00:30", "--until", "2013-03-01T01:00:01").json["published"] == 2
    assert shell(*words, "--until", "2013-03-01T01:00").json["published"] == 1
    originals, copies = published(shell, "air.*", 3), published(shell, "again.>", 6)
    for original, copy in zip(originals, copies, strict=False):
        assert (copy["causationid"], copy["data"]) == (original["id"], original["data"])
        assert (copy["time"], copy["partitionkey"]) == (original["time"], original["partitionkey"])
    assert {copy["id"] for copy in copies[3:]} == {copy["id"] for copy in copies[:3]}  # the same in every replay
    assert len({event["id"] for event in originals + copies}) == 6


def test_to_another_bus(shell: Shell) -> None:
    shell.write("air.csv", AIR)
    shell("replay", "air.csv", *TIMED)
    shell("replay", "--from", ">", "--to", "sqlite:///other.db", "--limit", "2")
    originals = published(shell, "air.>", 3)
    assert published(shell, ">", 2, "--url", "sqlite:///other.db") == originals[:2]  # their ids and all


def test_what_would_be_read_again_is_refused_before_anything_is_published(shell: Shell) -> None:
    shell("publish", "a.b.x", "--lines", input="1\n" * 1_100)  # more than a page
    shell("publish", "b.b.x", "2")
    words = ("replay", "--from", "*.b.>", "--topic", "c.{topic}")
    for more in ((), ("--dry-run",)):
        refused = shell(*words, *more, code=2).err
        assert "copies to 'c.b.b.x' would be read again" in refused
    assert [topic["name"] for topic in shell("topics", "--json").json] == ["a.b.x", "b.b.x"]


@pytest.mark.slow
def test_a_bus_of_two_names(shell: Shell) -> None:
    """Nobody can tell, but it ends: copies of copies are not made."""
    with fresh("redis") as mine:
        assert "127.0.0.1" in mine.url
        shell("publish", "a", "--lines", "--url", mine.url, input="1\n" * 1_100)
        other = mine.url.replace("127.0.0.1", "localhost")
        told = shell("replay", "--from", "a", "--url", mine.url, "--to", other, "--json").json
        assert told["published"] == 1_100


def test_what_is_refused(shell: Shell) -> None:
    shell.write("air.csv", AIR)
    shell("replay", "air.csv", *TIMED)
    (shell.folder / "link.db").symlink_to("shop.db")
    cases = [
        ("replay", "what shall be replayed?"),
        ("replay air.csv", "where to?"),
        ("replay air.csv --topic a/b", "--topic cannot be 'a/b'"),
        ("replay air.csv --topic _dead.x", "reserved"),
        ("replay air.csv --topic a.{statio}", "did you mean 'station'?"),
        ("replay air.csv --topic a --key stat", "has no column 'stat'"),
        ("replay air.cvs --topic a", "did you mean 'air.csv'?"),
        ("replay air.csv --topic a --speed 3", "when was it?"),
        ("replay air.csv --topic a --speed 0", "--speed cannot be 0"),
        ("replay air.csv --topic a --limit 0", "--limit cannot be 0"),
        ("replay air.csv --topic a --zone Europe/Berlim", "did you mean 'Europe/Berlin'?"),
        ("replay air.csv --topic a --since -1h", "--since is for what a bus retains"),
        ("replay --from air.> --topic b --key x", "--key is for files"),
        ("replay --from air.>", "where to?"),
        ("replay --from air.> --to sqlite:///link.db", "where to?"),
        ("replay --from air.> --topic air.B --to sqlite:///link.db", "would be read again"),
        ("replay --from air.> --topic air.B", "would be read again"),
        ("replay --from _dead.> --topic b", "reserved"),
        ("replay --from air.> --topic b --until soon", "--until cannot be 'soon'"),
    ]
    results = shell.all([line.split() for line, _ in cases])
    wrong = [(line, r) for (line, said), r in zip(cases, results, strict=True) if r[0] != 2 or r[1] or said not in r[2]]
    assert wrong == []
    assert len(published(shell, ">", 3)) == 3


# -- real data


@pytest.mark.slow
def test_twelve_stations(shell: Shell) -> None:
    files = sorted(map(str, (DATA / "iot_beijing_air").glob("*.gz")))
    if not files:
        pytest.skip("no real data here")
    words = (*files, *TIMED, "--key", "station", "--null", "NA")
    assert shell("replay", *words, "--limit", "30000", "--json").json["published"] == 30_000
    events = published(shell, "air.*", 30_000)
    assert all(a["time"] <= b["time"] for a, b in pairwise(events))
    assert {e["tdgtopic"] for e in events[:12]} == {f"air.{e['partitionkey']}" for e in events}


@pytest.mark.slow
def test_incidents(shell: Shell) -> None:
    file = DATA / "incidents" / "incident_event_log.csv.gz"
    if not file.exists():
        pytest.skip("no real data here")
    words = [str(file), "--topic", "incidents", "--key", "number", "--time-field", "sys_updated_at", "--null", "?"]
    assert "'29/2/2016 01:23' is no time; --time-format" in shell("replay", *words, code=2).err
    words += ["--time-format", "%d/%m/%Y %H:%M", "--sort"]
    assert shell("replay", *words, "--json").json["published"] == 141_712
    first = published(shell, "incidents", 1)[0]
    assert (first["partitionkey"], first["data"]["made_sla"], first["data"]["problem_id"]) == ("0000045", True, None)
