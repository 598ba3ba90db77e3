"""What a transport says is unavailable is refused at start-up: shown with buses that say less than they can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from tidings import App, Topic
from tidings.kernel.errors import Unsupported
from tidings.testing import run_virtual
from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.buses import memory
from tidings.transports.memory import Memory, MemoryTransport

FEATURES = {
    "ordered": "test_ordered_group_holds_a_failed_key",
    "start": "test_start",
    "wildcards": "test_wildcards",
    "delay": "test_delay",
    "priority": "test_priority",
    "expiry": "test_app_drops_what_has_expired",
}


class Lacking(MemoryTransport):
    """A memory bus that says it lacks a feature."""

    def __init__(self, options: Memory, feature: str) -> None:
        super().__init__(options)
        self.capabilities = replace(MemoryTransport.capabilities, **{feature: "unavailable"})


class LackingOptions:
    def __init__(self, options: Memory, feature: str) -> None:
        self.options, self.feature = options, feature

    @classmethod
    def from_url(cls, url: str) -> LackingOptions:
        raise NotImplementedError

    def transport(self) -> Any:
        return Lacking(self.options, self.feature)


class Suite(Conformance):
    __test__ = False


@pytest.mark.parametrize("feature", FEATURES)
def test_lacking_feature_is_tested_to_be_refused(feature: str, tmp_path: Path) -> None:
    bus = memory(tmp_path)
    less: Bus = replace(bus, options=lambda lease: LackingOptions(Memory(name="less", lease=lease), feature))
    test: Callable[[Bus], None] = getattr(Suite(), FEATURES[feature])
    test(less)


def test_refusal_names_the_line_and_the_mend() -> None:
    async def main() -> None:
        app = App("shop", LackingOptions(Memory(), "ordered"))

        @app.on(Topic("orders.placed"), ordered=True)
        async def bill(order: Any) -> None: ...

        with pytest.raises(Unsupported) as refusal:
            await app.__aenter__()
        assert "ordered" in str(refusal.value)
        assert "test_refusals.py" in refusal.value.where
        assert refusal.value.mend

    run_virtual(main())


def test_bus_that_takes_what_it_lacks_fails_the_suite(tmp_path: Path) -> None:
    """The test of a refusal is no formality: an app that is not refused fails it."""

    class Liar(Lacking):
        looks = 0

        def __init__(self, options: Memory) -> None:
            super().__init__(options, "delay")

        @property
        def capabilities(self) -> Any:
            Liar.looks += 1
            has = MemoryTransport.capabilities
            return replace(has, delay="unavailable") if Liar.looks <= 1 else has

        @capabilities.setter
        def capabilities(self, value: Any) -> None: ...

    class Options(LackingOptions):
        def transport(self) -> Any:
            return Liar(self.options)

    bus = replace(memory(tmp_path), options=lambda lease: Options(Memory(name="liar"), "delay"))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Suite().test_delay(bus)


def test_opt_outs_are_strict_expected_failures() -> None:
    class Partly(Conformance):
        opt_outs: ClassVar[dict[str, str]] = {"test_priority": "one queue only"}

    (mark,) = Partly.test_priority.pytestmark  # type: ignore[attr-defined]
    assert (mark.name, mark.kwargs) == ("xfail", {"strict": True, "reason": "one queue only"})
    assert not hasattr(Conformance.test_priority, "pytestmark")
