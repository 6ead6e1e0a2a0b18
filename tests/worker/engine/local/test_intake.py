"""Requests before they reach the model: what is refused, and what becomes of the others."""

from typing import Any

import pytest

from common.emitted import Emitted
from common.jobs import Message, Priority, Sampling
from tests.worker.engine.local.engines import make_spec
from tests.worker.engine.local.tiny import make_tokenizer
from tests.worker.engine.recorder import FRESH
from worker.engine.local.intake import Intake, Limits, Prepared
from worker.engine.local.tokenizer import Tokenizer
from worker.engine.protocol import Refused, Request

BACKEND = make_tokenizer()
TOKENIZER = Tokenizer(BACKEND)
EOS_ID = int(BACKEND.eos_token_id)
LIMITS = Limits(
    context_len=100,
    vocab_len=len(BACKEND),
    eos_ids=frozenset({EOS_ID}),
    cache_tokens=80,
    block_tokens=4,
    fingerprint="f",
    dtype="float32",
)
PROMPT = "the river turns slowly under a wheel"
IDS = TOKENIZER.encode(make_spec(PROMPT))


def _prepare(intake: Intake | None = None, **options: Any) -> Prepared:
    prepared = (intake or Intake(TOKENIZER, LIMITS)).prepare(_request(**options), 7)
    assert isinstance(prepared, Prepared), prepared
    return prepared


def _request(
    prompt: str | None = PROMPT,
    emitted: tuple[Emitted, ...] | None = None,
    tenant: str = "ada",
    base: tuple[int, ...] = (),
    request_id: str = "j:1",
    **options: Any,
) -> Request:
    spec = make_spec(prompt, **options)
    return Request(request_id, spec, emitted or (FRESH,) * spec.n, tenant, base)


def test_a_request_becomes_a_sequence() -> None:
    """It carries all that the engine's thread needs."""
    prepared = _prepare(
        max_tokens=9, priority=Priority.LOW, min_tokens=2, stop_token_ids=(5,), prompt_id="chat"
    )
    (sequence,) = prepared.sequences
    assert prepared.prompt_ids == tuple(IDS)
    assert (sequence.id, sequence.order, sequence.rank) == ("j:1#0", 7, 2)
    assert (sequence.ids, sequence.prompt_len, sequence.max_tokens) == (IDS, len(IDS), 9)
    assert (sequence.min_tokens, sorted(sequence.end_ids)) == (2, sorted({5, EOS_ID}))
    assert sequence.is_kept
    assert not sequence.wants_prompt_logprobs
    assert len(sequence.table.chain) == 1 + len(IDS) // 4
    assert prepared.echo is None


def test_an_ignored_eos_ends_nothing() -> None:
    """Stop tokens still do."""
    (sequence,) = _prepare(ignore_eos=True, stop_token_ids=(5,)).sequences
    assert sequence.end_ids == {5}


def test_what_was_emitted_is_prefilled_too() -> None:
    """The sampler goes on at the position behind it."""
    emitted = Emitted((20, 21), TOKENIZER.decode([20, 21]))
    (sequence,) = _prepare(emitted=(emitted,)).sequences
    assert sequence.ids == [*IDS, 20, 21]
    assert (sequence.prompt_len, sequence.prefill_len) == (len(IDS), len(IDS) + 2)
    assert sequence.sampler.position == 2


def test_several_answers_follow_the_first() -> None:
    """Those that have ended need no sequence; the first of the others leads."""
    ended = Emitted((20,), TOKENIZER.decode([20]))
    prepared = _prepare(n=3, max_tokens=1, emitted=(ended, FRESH, FRESH))
    leader, follower = prepared.sequences
    assert (leader.id, follower.id) == ("j:1#1", "j:1#2")
    assert (leader.leader, leader.has_followers) == (None, True)
    assert follower.leader is leader
    assert (leader.sampler.choice, follower.sampler.choice) == (1, 2)


def test_the_echo_is_the_prompts_text() -> None:
    """As it was sent; of a conversation the text of its IDs; of a rest the rest."""
    echo = _prepare(echo=True, logprobs=1).echo
    assert echo is not None
    assert (echo.text, echo.echo) == (PROMPT, True)
    rest = _prepare(echo=True, emitted=(Emitted(echo=PROMPT[:5]),)).echo
    assert rest is not None
    assert rest.text == PROMPT[5:]
    stored = _prepare(None, echo=True, base=tuple(IDS)).echo
    assert stored is not None
    assert stored.text == PROMPT


def test_tenants_blocks_have_different_names() -> None:
    """The same tokens of one tenant have the same."""
    names = [
        _prepare(tenant=tenant, request_id=request_id).sequences[0].table.chain
        for tenant, request_id in (("ada", "j:1"), ("ada", "k:1"), ("bob", "l:1"))
    ]
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2])


def test_a_probed_prompt_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt of the same job finds the IDs; another job does not."""
    intake = Intake(TOKENIZER, LIMITS)
    table, ids = intake.table(_request())
    assert ids == IDS
    assert table.chain == _prepare().sequences[0].table.chain
    monkeypatch.setattr(TOKENIZER, "encode", lambda _spec, _base: [5])
    assert _prepare(intake, request_id="j:2").prompt_ids == tuple(IDS)
    assert _prepare(intake, request_id="k:1").prompt_ids == (5,)


def test_only_so_many_probed_prompts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    intake = Intake(TOKENIZER, LIMITS)
    for number in range(65):
        intake.table(_request(request_id=f"j{number}:1"))
    monkeypatch.setattr(TOKENIZER, "encode", lambda _spec, _base: [5])
    assert _prepare(intake, request_id="j0:1").prompt_ids == (5,)
    assert _prepare(intake, request_id="j64:1").prompt_ids == tuple(IDS)


@pytest.mark.parametrize(
    ("options", "type_", "words"),
    [
        ({"prompt": ""}, "prompt-empty", "send some text"),
        ({"max_tokens": 100}, "prompt-too-long", "alone"),
        ({"prompt": "x" * 50, "max_tokens": 51}, "prompt-too-long", "context of 100"),
        ({"prompt": "x" * 50, "max_tokens": 31}, "prompt-too-long", "KV cache of 80"),
        ({"stop_token_ids": (999,)}, "token-unknown", "999"),
        ({"sampling": Sampling(logit_bias={len(BACKEND): 1.0})}, "token-unknown", "logit_bias"),
        ({"prompt": None, "base": (999,)}, "prompt-refused", "does not know"),
        ({"emitted": (Emitted((999,)),)}, "takeover-mismatch", "Another model"),
        ({"emitted": (Emitted((5,), "?"),)}, "takeover-mismatch", "do not decode"),
        ({"echo": True, "emitted": (Emitted(echo="?"),)}, "takeover-mismatch", "prompt"),
        (
            {"prompt": None, "messages": (Message("user", "hi"),)},
            "no-chat-template",
            "send a prompt",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], type_: str, words: str) -> None:
    """With a stable type and what to do."""
    refused = Intake(TOKENIZER, LIMITS).prepare(_request(**options), 0)
    assert isinstance(refused, Refused)
    assert refused.type == type_
    assert words in refused.detail


def test_what_just_fits_is_taken() -> None:
    """To the last token of the cache."""
    assert _prepare(prompt="x" * 50, max_tokens=30).sequences
