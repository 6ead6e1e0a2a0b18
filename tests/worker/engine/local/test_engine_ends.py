"""Where a local engine's answers end."""

from dataclasses import replace

import pytest

from tests.worker.engine.local.engines import PROMPTS, Reference, between_steps, make_spec, submit
from tests.worker.engine.recorder import EOS, LENGTH, STOP
from worker.engine.local.engine import LocalEngine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


def _set_eos(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, eos_id: int) -> None:
    intake = engine._parts.intake
    limits = replace(intake._limits, eos_ids=frozenset({eos_id}))
    monkeypatch.setattr(intake, "_limits", limits)


async def test_the_end_of_sequence_ends_the_answer(
    engine: LocalEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EOS is the last ID, it has no text, and only then ``is_eos`` is true."""
    ids = reference.complete(PROMPTS[0], 24)
    eos_id = ids[9]
    _set_eos(engine, monkeypatch, eos_id)
    answer = submit(engine, make_spec())
    assert await answer.ended() == EOS
    assert answer.ids == ids[: ids.index(eos_id) + 1]
    assert answer.text == reference.text_of(answer.ids[:-1])


async def test_an_answer_ends_no_earlier_than_it_may(
    engine: LocalEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before ``min_tokens`` the EOS is not chosen; ignored, it is a token like any other."""
    ids = reference.complete(PROMPTS[0], 24)
    eos_id = ids[4]
    _set_eos(engine, monkeypatch, eos_id)
    late = submit(engine, make_spec(min_tokens=20), "j:late")
    await late.ended()
    assert eos_id not in late.ids[:20]
    assert len(late.ids) > 20
    deaf = submit(engine, make_spec(ignore_eos=True), "j:deaf")
    assert await deaf.ended() == LENGTH
    assert deaf.ids == ids


async def test_a_stop_token_ends_the_answer(engine: LocalEngine, reference: Reference) -> None:
    """It is the last ID, without text, and no EOS."""
    ids = reference.complete(PROMPTS[0], 24)
    answer = submit(engine, make_spec(stop_token_ids=(ids[7],)))
    assert await answer.ended() == STOP
    assert answer.ids == ids[: ids.index(ids[7]) + 1]


async def test_a_stop_string_ends_the_answer_and_frees_its_slot(engine: LocalEngine) -> None:
    """The text is cut, the surplus of the model is discarded."""
    whole = submit(engine, make_spec(max_tokens=60))
    await whole.ended()
    stop = whole.text[10:13]
    cut = submit(engine, make_spec(max_tokens=180, stop=(stop,)), "j:2")
    assert await cut.ended() == STOP
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert whole.ids[: len(cut.ids)] == cut.ids
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)
