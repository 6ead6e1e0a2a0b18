"""Keys of blocks: equal exactly where everything up to the block's end is equal."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.kv.chain import KEY_LEN, beginnings, extend, keys_of, root

token_ids = st.integers(0, 2**32 - 1)
id_lists = st.lists(token_ids, max_size=40)
roots = st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4), st.integers(1, 64))
ROOT = root("t", "m", "bfloat16", 4)


@given(id_lists, id_lists, st.integers(1, 9))
def test_keys_agree_exactly_as_far_as_the_tokens_do(
    one: list[int], other: list[int], size: int
) -> None:
    """The number of equal leading keys is the number of equal leading full blocks."""
    pairs = zip(keys_of(ROOT, one, size), keys_of(ROOT, other, size), strict=False)
    equal = [first == second for first, second in pairs]
    expected = [
        one[:end] == other[:end] for end in range(size, min(len(one), len(other)) + 1, size)
    ]
    assert equal == expected


@given(id_lists, st.integers(1, 9))
def test_keys_of_is_extend_again_and_again(ids: list[int], size: int) -> None:
    """Block by block or all at once, the keys are the same."""
    keys = []
    key = ROOT
    for start in range(0, len(ids) - size + 1, size):
        key = extend(key, ids[start : start + size])
        keys.append(key)
    assert keys_of(ROOT, ids, size) == keys


@given(roots, roots, st.lists(token_ids, min_size=1, max_size=12))
def test_other_salts_never_meet(
    one: tuple[str, str, str, int], other: tuple[str, str, str, int], ids: list[int]
) -> None:
    """Another tenant, model, dtype or block size has no key in common."""
    assume(one != other)
    assert not {root(*one), *keys_of(root(*one), ids, 1)} & {
        root(*other),
        *keys_of(root(*other), ids, 1),
    }


@pytest.mark.parametrize(
    "moved", [("ab", "c", "d", 1), ("a", "bc", "d", 1), ("", "abc", "d", 1), ("abc", "d", "", 1)]
)
def test_fields_of_the_salt_do_not_run_together(moved: tuple[str, str, str, int]) -> None:
    """What ends one field cannot begin the next."""
    assert root(*moved) != root("abc", "", "d", 1)


@given(st.lists(token_ids, min_size=2, max_size=8))
def test_order_matters(ids: list[int]) -> None:
    """The same tokens in another order have another key."""
    assume(ids != ids[::-1])
    assert extend(ROOT, ids) != extend(ROOT, ids[::-1])


@given(st.lists(token_ids, min_size=1, max_size=8), st.integers(0, 7))
def test_a_partial_block_has_a_key_of_its_own(ids: list[int], cut: int) -> None:
    """Fewer tokens are another key, and none at all is not the parent's."""
    assume(cut < len(ids))
    assert len({ROOT, extend(ROOT, ids[:cut]), extend(ROOT, ids)}) == 3


def test_two_short_blocks_are_not_one_long() -> None:
    """Where blocks end is part of the key."""
    assert extend(extend(ROOT, [1, 2]), [3, 4]) != extend(ROOT, [1, 2, 3, 4])


def test_keys_are_the_same_in_every_process() -> None:
    """Nothing but the arguments goes in: files outlive processes and releases."""
    key = extend(root("t", "m", "bfloat16", 16), [1, 2, 3])
    assert len(key) == KEY_LEN
    assert key.hex() == "4601add96bd396d19590ed7e8d7c001dcbca9cfe3a9f39589fb28cd5744141cc"


@given(st.lists(token_ids, min_size=1, max_size=8))
def test_beginnings_are_the_keys_of_all_that_starts_a_block(ids: list[int]) -> None:
    """Each is what the shorter block would be called."""
    lengths = range(1, len(ids) + 1)
    assert beginnings(ROOT, ids) == [extend(ROOT, ids[:length]) for length in lengths]
