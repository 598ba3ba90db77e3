"""``tidings topology``: the graph of an app, in four forms; and its layout, for any graph."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from textwrap import dedent
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.topology.layout import layered
from tidings.topology.wiring import overlap

from .conftest import Shell

DESK = '''
from tidings import App, Message, Router, Service, Topic
import tidings

app = App("desk", "sqlite:///desk.db", far="memory://")
placed = Topic("orders.{shop}.placed", int)
paid = Topic("orders.paid", int)
shipped = Topic("shipped", int, bus="far")
price = Service("price", int, float)
spare = Topic("spare")

@app.on(placed, to=paid)
async def bill(n: int, shop: str) -> int:
    return int(await app.request(price, n))

@app.on(paid, group="ship")
async def ship(n: int) -> Message[int]:
    """It sends no other message, whatever its numbers are called."""
    return _send(n.placed)

def _send(n: int) -> Message[int]:
    return shipped(n)

@app.on("orders.>", live=True)
async def audit(message: Message[int]) -> None: ...

@app.answer(price)
async def quote(n: int) -> float: ...

@app.cron("0 9 * * *")
async def remind() -> Message[int]:
    return placed.bind(shop="x")(1)

@app.on(shipped)
async def again(n: int) -> Message[int]:
    return paid(n)
'''

MERMAID = """
    flowchart LR
      n0["bill<br/><small>desk.bill</small>"]
      n1(["orders.{shop}.placed"])
      n2(["orders.paid"])
      n3{{"price"}}
      n4["ship<br/><small>ship</small>"]
      n6["audit<br/><small>live</small>"]
      n7(["orders.#62;"])
      n8["quote"]
      n9["remind<br/><small>desk.remind</small>"]
      n10[/"0 9 * * * UTC"/]
      n11["again<br/><small>desk.again</small>"]
      n12(["spare"])
      n13[["dead letters"]]
      subgraph bus_far["bus far"]
        n5(["shipped"])
        n14[["dead letters"]]
      end
      n1 --> n0
      n0 --> n2
      n0 -- asks --> n3
      n2 --> n4
      n4 --> n5
      n7 --> n6
      n3 --> n8
      n10 --> n9
      n9 --> n1
      n5 --> n11
      n11 --> n2
      n1 -.-> n7
      n2 -.-> n7
      n0 -. fails .-> n13
      n4 -. fails .-> n13
      n9 -. fails .-> n13
      n11 -. fails .-> n14
"""

TREE = """
    desk
    0 9 * * * UTC
    └─ remind (desk.remind)  desk.py:30
       └─ orders.{shop}.placed
          ├─ bill (desk.bill)  desk.py:12
          │  ├─ orders.paid
          │  │  ├─ ship (ship)  desk.py:16
          │  │  │  └─ shipped on far
          │  │  │     └─ again (desk.again)  desk.py:34
          │  │  │        └─ orders.paid …
          │  │  └─ also orders.>
          │  │     └─ audit (live)  desk.py:24
          │  └─ asks price
          │     └─ quote  desk.py:27
          └─ also orders.> …
    spare
"""

SVG = "{http://www.w3.org/2000/svg}"


def test_mermaid(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    assert nowhere("topology", "desk:app").out == dedent(MERMAID).lstrip()


def test_tree(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    assert nowhere("topology", "desk:app", "--text").out == dedent(TREE).lstrip()


def test_json(nowhere: Shell) -> None:
    file = nowhere.write("desk.py", DESK)
    graph = nowhere("topology", "desk", "--json").json
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert nodes["handler:desk.bill"] == {
        "id": "handler:desk.bill",
        "kind": "handler",
        "name": "bill",
        "note": "desk.bill",
        "role": "",
        "bus": "",
        "where": f"{file}:12",
        "pattern": "",
        "messages": None,
        "observed": False,
    }
    assert {"source": "handler:desk.bill", "target": "service::price", "kind": "asks"} in graph["edges"]
    assert all(edge[end] in nodes for edge in graph["edges"] for end in ("source", "target"))


def test_dead_letters_that_are_listened_to(nowhere: Shell) -> None:
    more = "\n@app.on('_dead.desk.bill')\nasync def mourn(message: Message[bytes]) -> None: ...\n"
    nowhere.write("desk.py", DESK + more)
    edges = nowhere("topology", "desk", "--json").json["edges"]
    dies = {(edge["source"], edge["target"]) for edge in edges if edge["kind"] == "dies"}
    assert dies == {
        ("handler:desk.bill", "dead::_dead.desk.bill"),
        ("handler:ship", "dead::_dead.>"),
        ("handler:desk.remind", "dead::_dead.>"),
        ("handler:desk.again", "dead:far:_dead.>"),
    }
    assert "_dead.desk.bill\n└─ mourn" in nowhere("topology", "desk", "--text").out


def test_a_pattern_that_no_topic_fits_stands_alone(nowhere: Shell) -> None:
    source = "from tidings import App\napp = App('a')\n@app.on('x.*')\nasync def f(n: int): ...\n"
    nowhere.write("alone.py", source)
    assert "x.*\n└─ f (a.f)" in nowhere("topology", "alone", "--text").out


def drawn(text: str) -> tuple[ET.Element, list[tuple[float, float, float, float]]]:
    """(the picture, its boxes: left, top, right, bottom)."""
    picture = ET.fromstring(text)
    rects = [rect for group in picture.iter(f"{SVG}g") for rect in group.iter(f"{SVG}rect")]
    sides = [[float(rect.attrib[name]) for name in ("x", "y", "width", "height")] for rect in rects]
    return picture, [(x, y, x + width, y + height) for x, y, width, height in sides]


def test_svg(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    assert nowhere("topology", "desk", "--svg", "desk.svg").out == "wrote desk.svg\n"
    text = (nowhere.folder / "desk.svg").read_text()
    picture, boxes = drawn(text)
    graph = nowhere("topology", "desk", "--json").json
    assert len(boxes) == len(graph["nodes"])
    assert len(picture.findall(f"{SVG}path")) == len(graph["edges"])
    for path in picture.findall(f"{SVG}path"):  # a last stretch of no length would leave the tip without a direction
        *_, before, last = re.findall(r"[-0-9.]+(?= [-0-9.]+(?: [CH]|$))|(?<=H)[-0-9.]+", path.attrib["d"])
        assert before != last, path.attrib["d"]
    said = [element.text for element in picture.iter(f"{SVG}text")]
    assert {node["name"] for node in graph["nodes"]} <= set(said)
    left, top, width, height = map(float, picture.attrib["viewBox"].split())
    assert all(left <= a and top <= b and c <= left + width and d <= top + height for a, b, c, d in boxes)
    assert not [pair for pair in combinations(boxes, 2) if overlapping(*pair)]
    assert "prefers-color-scheme: dark" in text


def overlapping(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_an_app_without_handlers(nowhere: Shell) -> None:
    nowhere.write("empty.py", "from tidings import App\napp = App('empty')\n")
    assert nowhere("topology", "empty").out == "flowchart LR\n"
    assert nowhere("topology", "empty", "--text").out == "empty\n"
    nowhere("topology", "empty", "--svg", "empty.svg")
    picture, boxes = drawn((nowhere.folder / "empty.svg").read_text())
    assert boxes == []
    assert float(picture.attrib["width"]) >= 0


def test_svg_is_not_written_lightly(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    assert nowhere("topology", "desk", "--svg", "desk.svg", "--dry-run").out == "would write desk.svg\n"
    assert not (nowhere.folder / "desk.svg").exists()
    assert "--svg cannot be 'nix/desk.svg'" in nowhere("topology", "desk", "--svg", "nix/desk.svg", code=2).err
    assert "exclude each other" in nowhere("topology", "desk", "--svg", "x.svg", "--text", code=2).err
    wrote = nowhere("topology", "desk", "--svg", "desk.svg", "--json").json
    assert (wrote["file"], wrote["dry_run"]) == ("desk.svg", False)
    assert json.loads(nowhere("topology", "dsk", "--json", code=2).err)["error"]["mend"] == "did you mean 'desk'?"


def test_svg_overwrites_only_pictures(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    for words in (["--dry-run"], []):
        assert "is no picture of ours" in nowhere("topology", "desk", "--svg", "desk.py", *words, code=2).err
    assert (nowhere.folder / "desk.py").read_text() == DESK
    nowhere("topology", "desk", "--svg", "desk.svg")
    nowhere("topology", "desk", "--svg", "desk.svg")


def test_topics_of_a_class_and_functions_of_exec(nowhere: Shell) -> None:
    nowhere.write(
        "desk.py",
        """
from tidings import App, Topic
app = App("desk")
class Topics:
    paid = Topic("paid", int)
names = dict(app=app, Topics=Topics)
exec("@app.on('placed')\\nasync def bill(n: int): return helper(n)\\ndef helper(n): return Topics.paid(n)", names)
""",
    )
    assert {"source": "handler:desk.bill", "target": "topic::paid", "kind": "sends"} in nowhere(
        "topology", "desk", "--json"
    ).json["edges"]


def test_a_long_chain(nowhere: Shell) -> None:
    nowhere.write(
        "long.py",
        """
from tidings import App, Topic
app = App("long")
async def step(n: int) -> int: ...
for number in range(600):
    app.on(f"step.{number}", to=Topic(f"step.{number + 1}", int), group=f"g{number}")(step)
""",
    )
    assert nowhere("topology", "long", "--text").out.count("step (") == 600


def test_a_long_chain_is_laid_out() -> None:
    names = [str(number) for number in range(1_200)]
    placed = layered(dict.fromkeys(names, (10.0, 10.0)), list(pairwise(names)))
    assert sorted(names, key=lambda name: placed.centres[name][0]) == names


def test_on_a_terminal(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    assert nowhere.on_terminal("topology", "desk", "--text").out == dedent(TREE).lstrip()


def test_overlap() -> None:
    for one, other, expected in [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*.c", "a.b.*", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a.b", True),
        (">", "_dead.x", False),
        ("_dead.>", "_dead.a.b", True),
    ]:
        assert overlap(one, other) is overlap(other, one) is expected, (one, other)


names = st.integers(0, 11).map(str)
graphs = st.lists(st.tuples(names, names).filter(lambda edge: edge[0] != edge[1]), max_size=30, unique=True)


@settings(max_examples=200, deadline=None)
@given(edges=graphs, alone=st.sets(names, max_size=3), sizes=st.data())
def test_any_graph_is_laid_out(edges: list[tuple[str, str]], alone: set[str], sizes: Any) -> None:
    """No two boxes overlap, no line passes through one on its way, and what is no circle leads to the right."""
    nodes = sorted({name for edge in edges for name in edge} | alone)
    given_sizes = {name: (sizes.draw(st.integers(10, 200)), sizes.draw(st.sampled_from([30, 46]))) for name in nodes}
    placed = layered(given_sizes, edges)
    boxes = {}
    for name, (x, y) in placed.centres.items():
        width, height = given_sizes[name]
        boxes[name] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        assert placed.layers[name][0] <= x - width / 2 + 1e-6
        assert x + width / 2 <= placed.layers[name][1] + 1e-6
        assert y - height / 2 >= -1e-6
        assert y + height / 2 <= placed.size[1] + 1e-6
    inner = [tuple(side + (1e-6 if index < 2 else -1e-6) for index, side in enumerate(box)) for box in boxes.values()]
    assert not [pair for pair in combinations(inner, 2) if overlapping(*pair)]
    assert set(placed.bends) == set(edges)
    for points in placed.bends.values():
        for x, y in points:
            assert not [box for box in inner if box[0] < x < box[2] and box[1] < y < box[3]]
    for source, target in edges:
        if not reaches(target, source, edges):
            assert placed.centres[source][0] < placed.centres[target][0]


def reaches(source: str, target: str, edges: list[tuple[str, str]]) -> bool:
    seen, waiting = set[str](), [source]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [after for before, after in edges if before == name]
    return target in seen


def test_orphans(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    said = nowhere("topology", "desk", "--orphans").out
    assert [line.split() for line in said.splitlines()] == [
        ["CHANNEL", "WHAT", "BUS"],
        ["spare", "nobody", "uses", "it", "-"],
    ]
    found = nowhere("topology", "desk", "--orphans", "--json").json
    assert [[node["name"] for node in found[key]] for key in ("unheard", "unsent", "unused")] == [[], [], ["spare"]]
    nowhere.write("alone.py", "from tidings import App\napp = App('a')\n@app.answer('x')\nasync def f(n: int): ...\n")
    assert "x" in nowhere("topology", "alone", "--orphans").out
    assert "nobody asks" in nowhere("topology", "alone", "--orphans").out
    nowhere.write("empty.py", "from tidings import App\napp = App('empty')\n")
    assert nowhere("topology", "empty", "--orphans").out == "no orphans: each channel has both ends\n"
    assert "exclude each other" in nowhere("topology", "desk", "--orphans", "--text", code=2).err


def test_observed(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK.replace(', far="memory://"', ', far="sqlite:///far.db"'))
    assert "there is no bus file" in nowhere("topology", "desk", "--observed", code=3).err
    assert not (nowhere.folder / "desk.db").exists()
    for file in ("desk.db", "far.db"):
        nowhere("publish", "orders.extra", "1", "--url", f"sqlite:///{file}")
    said = nowhere("topology", "desk", "--observed", "--text").out
    assert "orders.extra (1 message)" in said
    assert "tidings-cli (app)" in said
    graph = nowhere("topology", "desk", "--url", "sqlite:///far.db", "--json").json
    assert sum(node["name"] == "orders.extra" for node in graph["nodes"]) == 2
    nowhere.write("still.py", "from tidings import App\napp = App('still', 'memory://')\n")
    assert "cannot be reached from another process" in nowhere("topology", "still", "--observed", code=2).err
