"""Job specifications on the wire, and the states."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.jobs import (
    ACTIVE,
    TERMINAL,
    JobSpec,
    JobState,
    Message,
    Priority,
    Sampling,
    decode_spec,
    encode_spec,
)

# What release 0.1.0 wrote. Never edit a line: later releases must go on reading these.
RELEASE_0_1_0 = {
    "83a56d6f64656ca474696e79aa6d61785f746f6b656e7308a670726f6d7074a44f6e6365": JobSpec(
        model="tiny", max_tokens=8, prompt="Once"
    ),
    "89a56d6f64656ca86f72672f74696e79aa6d61785f746f6b656e7310a86d6573736167657391"
    "82a4726f6c65a475736572a7636f6e74656e74a24869a873616d706c696e6784ab74656d7065"
    "726174757265cb3fe0000000000000a5746f705f70cb3fe8000000000000a5746f705f6b28a4"
    "73656564cf7fffffffffffffffa473746f7091a20a0aa87072696f72697479a468696768aa64"
    "6561646c696e655f73cb403e000000000000a970726f6d70745f6964a6636861742d31a86d65"
    "74616461746181a161a162": JobSpec(
        model="org/tiny",
        max_tokens=16,
        messages=(Message("user", "Hi"),),
        sampling=Sampling(0.5, 0.75, 40, 2**63 - 1),
        stop=("\n\n",),
        priority=Priority.HIGH,
        deadline_s=30.0,
        prompt_id="chat-1",
        metadata={"a": "b"},
    ),
}

messages = st.lists(
    st.builds(Message, st.text(min_size=1, max_size=32), st.text()), max_size=3
).map(tuple)
specs = st.builds(
    JobSpec,
    model=st.text(min_size=1),
    max_tokens=st.integers(0, 2**31),
    prompt=st.none() | st.text(),
    messages=st.none() | messages,
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 10),
        top_p=st.floats(0, 1, exclude_min=True),
        top_k=st.integers(0, 1_000_000),
        seed=st.integers(0, 2**63 - 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0, 10, exclude_min=True),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        logit_bias=st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100), max_size=3),
    ),
    stop=st.lists(st.text(), max_size=3).map(tuple),
    priority=st.sampled_from(Priority),
    deadline_s=st.floats(0, 1e9),
    prompt_id=st.none() | st.text(),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
    append=st.none() | st.text() | messages,
    if_version=st.none() | st.integers(1, 2**53),
    stop_token_ids=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    min_tokens=st.integers(0, 2**31),
    ignore_eos=st.booleans(),
    n=st.integers(1, 16),
    logprobs=st.none() | st.integers(0, 20),
    echo=st.booleans(),
    allow_reset=st.booleans(),
)


@given(specs)
def test_a_spec_survives_the_wire(spec: JobSpec) -> None:
    """What a worker decodes is what the gateway encoded."""
    assert decode_spec(encode_spec(spec)) == spec


@pytest.mark.parametrize(("data", "spec"), RELEASE_0_1_0.items())
def test_release_0_1_0_is_still_read(data: str, spec: JobSpec) -> None:
    """A job that an older gateway accepted runs on a newer worker."""
    assert decode_spec(bytes.fromhex(data)) == spec


@pytest.mark.fault(7)
def test_a_field_of_a_newer_release_is_ignored() -> None:
    """A worker takes the jobs of a newer gateway while the fleet is updated."""
    known = JobSpec(model="tiny", max_tokens=8, prompt="Once")
    newer = msgspec.to_builtins(known) | {"of_tomorrow": {"7": -1.0}}
    assert decode_spec(msgspec.msgpack.encode(newer)) == known


@pytest.mark.parametrize(("data", "spec"), RELEASE_0_1_0.items())
def test_release_0_1_0_reads_what_uses_nothing_new(data: str, spec: JobSpec) -> None:
    """An older worker gets a newer gateway's job as its own gateway would write it."""
    decode = msgspec.msgpack.decode
    assert decode(encode_spec(spec)) == decode(bytes.fromhex(data))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """A seed fits the engine's signed 64 bits."""
    wrong = encode_spec(JobSpec(model="tiny", max_tokens=8, sampling=Sampling(seed=seed)))
    with pytest.raises(msgspec.ValidationError):
        decode_spec(wrong)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03"])
def test_a_damaged_spec_raises_a_decode_error(data: bytes) -> None:
    """Damaged data is a ``DecodeError``, which callers catch, and nothing else."""
    with pytest.raises(msgspec.DecodeError):
        decode_spec(data)


def test_every_state_is_active_or_terminal() -> None:
    """The two sets divide the states."""
    assert frozenset(JobState) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL


def test_the_priorities_are_in_reading_order() -> None:
    """Workers read the lanes in the order of the enumeration."""
    assert list(Priority) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]
