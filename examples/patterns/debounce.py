"""Debounce: of the edits of a document only the last is saved, when nobody has typed for a while."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import debounce


class Edit(Struct):
    document: str
    text: str


app = App("pad", "memory://")
edits, settled = Topic("edits", Edit), Topic("edits.settled", Edit)
saved: asyncio.Queue[Edit] = asyncio.Queue()

debounce(app, edits, to=settled, quiet="200ms", at_most="2s", every="20ms")


@app.on(settled)
async def save(edit: Edit) -> None:
    saved.put_nowait(edit)


async def main() -> None:
    typed = [Edit(name, "hello"[:length]) for length in range(1, 6) for name in ("a", "b")]
    async with app:
        for edit in typed:
            await app.publish(edits, edit, key=edit.document)
        found = [await saved.get() for _ in range(2)]
    print(*found)
    assert sorted(edit.document for edit in found) == ["a", "b"]
    assert {edit.text for edit in found} == {"hello"}
    assert saved.empty()


if __name__ == "__main__":
    asyncio.run(main())
