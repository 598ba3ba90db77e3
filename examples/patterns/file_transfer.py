"""File Transfer: one program writes whole files into a folder; each becomes one message, and answers become files."""

import asyncio
import tempfile
from pathlib import Path

from tidings import App, Topic
from tidings.patterns import watch_files, write_files

arrived = Topic("statements.arrived", str)
totals = Topic("statements.total", str)
written = asyncio.Event()


def office(folder: Path) -> App:
    app = App("office", f"sqlite:///{folder}/office.db")
    watch_files(app, folder / "in", arrived, pattern="*.csv", every="20ms", settle=0)  # 0: they are renamed into place
    write_files(app, totals, folder / "out", name=lambda message: f"{message.key}.txt")

    @app.on(arrived)
    async def add(statement: str) -> None:
        amounts = [int(line.rpartition(",")[2]) for line in statement.splitlines()]
        await app.publish(totals, str(sum(amounts)), key="total")

    return app


def bank(folder: Path) -> None:
    """The other program: it knows a folder, and nothing of messages."""
    folder.mkdir(exist_ok=True)
    half = folder / ".may.csv"  # a name that begins with a dot is not taken
    half.write_text("rent,900\nfood,250\n")
    half.rename(folder / "may.csv")


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with office(folder) as app:
            bank(folder / "in")
            while not app.stats()["office.write-out"].handled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        total = (folder / "out" / "total.txt").read_text()
        done = [path.name for path in (folder / "in" / ".done").iterdir()]
    print(total, done)
    assert (total, done) == ("1150", ["may.csv"])


if __name__ == "__main__":
    asyncio.run(main())
