"""Which model a request means, and how often Redis is asked."""

from typing import cast

import pytest

from common.errors import Problem
from common.registry import Registry
from gateway import model_choice
from gateway.model_choice import ModelChoice


class CountingRegistry:
    """Knows some models, with the end of their last lease."""

    def __init__(self, **models: int) -> None:
        self.known = models
        self.clock_ms = 0
        self.num_asked = 0

    async def models(self) -> dict[str, int]:
        """Return the models."""
        self.num_asked += 1
        return dict(self.known)

    async def now_ms(self) -> int:
        """Return the time."""
        return self.clock_ms


def choice_of(registry: CountingRegistry, default: str = "") -> ModelChoice:
    """Return a choice among the models of this registry."""
    return ModelChoice(cast("Registry", registry), default)


async def test_redis_is_asked_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a known model, or none, is answered from what was heard last."""
    registry = CountingRegistry(old=1, new=2)
    choice = choice_of(registry)
    assert [await choice.choose(name) for name in (None, "old", "new", None)] == [
        "new", "old", "new", "new",
    ]  # fmt: skip
    assert registry.num_asked == 1
    monkeypatch.setattr(model_choice, "FRESH_S", -1)
    registry.known = {"newest": 3}
    assert await choice.choose(None) == "newest"


async def test_who_names_none_gets_the_same_model_while_it_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever comes, goes or renews a lease meanwhile; another one only when it is gone."""
    monkeypatch.setattr(model_choice, "FRESH_S", -1)
    registry = CountingRegistry(first=100_000)
    choice = choice_of(registry)
    assert await choice.choose(None) == "first"
    registry.known["second"] = 1_000_000
    chosen = []
    for registry.clock_ms in (99_000, 130_000, 130_001):
        chosen.append(await choice.choose(None))
    assert chosen == ["first", "first", "second"]


async def test_a_model_that_has_just_come_is_found() -> None:
    """A name that nobody has heard has Redis asked anew."""
    registry = CountingRegistry()
    choice = choice_of(registry)
    with pytest.raises(Problem, match="headrace worker"):
        await choice.choose(None)
    registry.known = {"first": 1}
    assert await choice.choose(None) == "first"
    registry.known["second"] = 2
    assert await choice.choose("second") == "second"


@pytest.mark.parametrize("wanted", ["", "other"])
@pytest.mark.parametrize("default", ["", "mine"])
async def test_an_unknown_name_is_refused(wanted: str, default: str) -> None:
    """An empty one too, and each time Redis has been asked."""
    registry = CountingRegistry(first=1)
    choice = choice_of(registry, default)
    for num_asked in (1, 2):
        with pytest.raises(Problem, match="first"):
            await choice.choose(wanted)
        assert registry.num_asked == num_asked


async def test_the_default_need_not_be_served() -> None:
    """Its jobs wait for the first worker."""
    choice = choice_of(CountingRegistry(first=1), "mine")
    assert [await choice.choose(name) for name in (None, "mine", "first")] == [
        "mine", "mine", "first",
    ]  # fmt: skip
