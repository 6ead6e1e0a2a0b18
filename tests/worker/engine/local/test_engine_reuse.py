"""What a local engine has computed once, and what becomes of it."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import EngineFailed
from common.jobs import Message
from tests.support.waiting import within
from tests.worker.engine.local.engines import (
    PROMPTS,
    Reference,
    between_steps,
    forget,
    loaded,
    make_spec,
    submit,
)
from tests.worker.engine.recorder import DEADLINE_S
from worker.engine.local import engine as engine_module
from worker.engine.local.engine import LocalEngine
from worker.engine.local.parts import MAX_DISK_THREADS
from worker.engine.protocol import Request
from worker.kv.tiers import Tiers

OTHER = PROMPTS[2][::-1]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


async def test_a_known_prefix_is_not_prefilled_again(
    engine: LocalEngine, reference: Reference
) -> None:
    """The same prompt, and a longer one, get the answers that they get without the cache."""
    first = submit(engine, make_spec(PROMPTS[2]), "j:1")
    await first.ended()
    second = submit(engine, make_spec(PROMPTS[2]), "j:2")
    await second.ended()
    longer = submit(engine, make_spec(PROMPTS[2] + "and the grain"), "j:3")
    await longer.ended()
    assert (first.prefilled.cached_tokens, second.prefilled.cached_tokens) == (0, 70)
    assert 64 <= longer.prefilled.cached_tokens <= 71
    assert first.ids == second.ids
    assert longer.ids == reference.complete(PROMPTS[2] + "and the grain", 24)
    kv = engine.stats().kv
    assert kv is not None
    assert kv.hit_tokens == 70 + longer.prefilled.cached_tokens


async def test_what_is_cached_outlives_a_restart(
    tiny_model: Path, tmp_path: Path, reference: Reference
) -> None:
    """A new engine in the same place finds the old one's blocks on disk, the tail included."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    async with loaded(tiny_model, **options) as engine:
        before = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"))
        base = (await before.ended()).sequence
    async with loaded(tiny_model, **options) as engine:
        assert await engine.probe(Request("j:1", make_spec(PROMPTS[2]))) != "miss"
        kv = engine.stats().kv
        assert kv is not None
        assert kv.host_bytes == 0, "a job's start waits for no disk"
        again = submit(engine, make_spec(PROMPTS[2]), "j:1")
        await again.ended()
        more = submit(engine, make_spec(None, append="and the grain"), "j:2", base=base)
        await more.ended()
        kv = engine.stats().kv
    assert again.ids == before.ids
    assert again.prefilled.cached_tokens >= 64
    assert more.ids == reference.generate([*base, *reference.encode("and the grain")], 24)
    assert more.prefilled.cached_tokens == len(base) - 1
    assert kv is not None
    assert kv.disk_hit_tokens >= 64


async def test_a_disk_that_hangs_holds_up_nobody_else(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its own prompt only until computing it would have been sooner."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    async with loaded(tiny_model, **options) as engine:
        before = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"))
        await before.ended()
    answers, hanging = threading.Event(), threading.Event()
    read = Tiers.prefetch

    def hang(tiers: Tiers, names: Sequence[bytes]) -> int:
        hanging.set()
        assert answers.wait(DEADLINE_S)
        return read(tiers, names)

    monkeypatch.setattr(Tiers, "prefetch", hang)
    async with loaded(tiny_model, **options) as engine:
        chat = submit(engine, make_spec(PROMPTS[2]), "j:1")
        assert await asyncio.to_thread(hanging.wait, DEADLINE_S)
        other = submit(engine, make_spec(PROMPTS[0]), "j:2")
        await other.ended()
        assert not chat.ids
        monkeypatch.setattr(engine_module, "_READ_S", 0.01)
        again = submit(engine, make_spec(PROMPTS[2]), "j:3")
        await again.ended()
        answers.set()
        await chat.ended()
    assert chat.ids == again.ids == before.ids
    assert again.prefilled.cached_tokens >= 64


async def test_a_look_that_hangs_holds_up_nobody_else(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many probes as may wait for the disk, and prompts and further probes do not."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    answers, hanging = threading.Event(), threading.Semaphore(0)

    def hang(_tiers: Tiers, _names: Sequence[bytes]) -> None:
        hanging.release()
        assert answers.wait(DEADLINE_S)

    monkeypatch.setattr(Tiers, "look", hang)
    async with loaded(tiny_model, **options) as engine:
        requests = [Request(f"job{n}:1", make_spec(PROMPTS[2])) for n in range(MAX_DISK_THREADS)]
        probes = [asyncio.create_task(engine.probe(request)) for request in requests]
        for _ in probes:
            assert await asyncio.to_thread(hanging.acquire, timeout=DEADLINE_S)
        async with within():
            assert await engine.probe(Request("late:1", make_spec(OTHER))) == "miss"
        await submit(engine, make_spec(PROMPTS[2]), "other:1").ended()
        answers.set()
        await asyncio.gather(*probes)


async def test_a_request_that_is_lost_after_its_reading_fails_the_engine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request would wait for ever otherwise."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    async with loaded(tiny_model, **options) as engine:
        await submit(engine, make_spec(PROMPTS[2], prompt_id="chat")).ended()

    def refuse(_engine: LocalEngine, *_args: object) -> None:
        raise RuntimeError("a bug")

    async with loaded(tiny_model, **options) as engine:
        monkeypatch.setattr(LocalEngine, "_post", refuse)
        submit(engine, make_spec(PROMPTS[2]), "j:1")
        with pytest.raises(EngineFailed, match="a bug"):
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()


async def test_what_is_forgotten_is_prefilled_again(engine: LocalEngine) -> None:
    """A deleted prompt leaves nothing in the cache."""
    first = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"), "j:1")
    sequence = (await first.ended()).sequence
    await forget(engine, "default", sequence)
    second = submit(engine, make_spec(PROMPTS[2]), "j:2")
    await second.ended()
    assert second.prefilled.cached_tokens == 0
    assert second.ids == first.ids


async def test_what_is_forgotten_below_holds_up_nobody(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long sequence has many names; others are computed meanwhile. One is forgotten at a time."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    may_end, begun = threading.Event(), threading.Semaphore(0)
    forget_keys = Tiers.forget

    def hang(tiers: Tiers, keys: Sequence[bytes]) -> None:
        begun.release()
        assert may_end.wait(DEADLINE_S)
        forget_keys(tiers, keys)

    monkeypatch.setattr(Tiers, "forget", hang)
    async with loaded(tiny_model, **options) as engine:
        chat = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"), "j:1")
        sequence = (await chat.ended()).sequence
        engine.forget("default", sequence)
        engine.forget("default", sequence)
        assert await asyncio.to_thread(begun.acquire, timeout=DEADLINE_S)
        again = submit(engine, make_spec(PROMPTS[2]), "j:2")
        await again.ended()
        assert not begun.acquire(blocking=False)
        may_end.set()
    assert again.ids == chat.ids


async def test_what_is_forgotten_too_slowly_costs_no_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine ends, and saves what others have computed."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    may_end = threading.Event()
    monkeypatch.setattr(engine_module, "_CLOSE_S", 0.5)
    with monkeypatch.context() as slow:
        slow.setattr(Tiers, "forget", lambda _tiers, _keys: may_end.wait(DEADLINE_S))
        async with loaded(tiny_model, **options) as engine:
            await submit(engine, make_spec(OTHER), "j:1").ended()
            engine.forget("default", (1, 2, 3))
    may_end.set()
    async with loaded(tiny_model, **options) as engine:
        assert await engine.probe(Request("a:1", make_spec(OTHER))) == "partial"


async def test_what_is_forgotten_while_the_engine_closes_is_not_saved(
    tiny_model: Path, tmp_path: Path
) -> None:
    """What a worker has been told to forget before it stops is not there when it comes back."""
    options = {"cache_dir": tmp_path, "kv_host_bytes": 1 << 20, "kv_disk_bytes": 1 << 22}
    async with loaded(tiny_model, **options) as engine:
        chat = submit(engine, make_spec(PROMPTS[2], prompt_id="chat"), "j:1")
        kept = submit(engine, make_spec(OTHER), "j:2")
        await kept.ended()
        engine.forget("default", (await chat.ended()).sequence)
    async with loaded(tiny_model, **options) as engine:
        assert await engine.probe(Request("a:1", make_spec(PROMPTS[2]))) == "miss"
        assert await engine.probe(Request("b:1", make_spec(OTHER))) == "partial"


async def test_tenants_never_hit_each_others_cache(engine: LocalEngine) -> None:
    """The same prompt of another tenant is computed anew, and gets the same answer."""
    answers = [
        submit(engine, make_spec(PROMPTS[2]), f"j:{tenant}", tenant=tenant)
        for tenant in ("ada", "bob")
    ]
    for answer in answers:
        await answer.ended()
        assert answer.prefilled.cached_tokens == 0
    assert answers[0].ids == answers[1].ids
    request = Request("j:eve", make_spec(PROMPTS[2]), tenant="eve")
    assert await engine.probe(request) == "miss"


async def test_a_probe_tells_what_is_cached(engine: LocalEngine) -> None:
    """All of it, a part or nothing; of what will be refused it tells nothing."""
    prompt = PROMPTS[2]
    request, longer = (Request("j:1", make_spec(one)) for one in (prompt, prompt + "y" * 40))
    assert await engine.probe(request) == "miss"
    answer = submit(engine, request.spec, "j:1")
    await answer.ended()
    await between_steps(engine, lambda: None)  # its blocks have names then
    assert await engine.probe(request) == "hit"
    assert await engine.probe(replace(longer, id="j2:1")) == "partial"
    villain = make_spec(None, messages=(Message("villain", "ha"),))
    assert not await engine.probe(Request("j3:1", villain))
