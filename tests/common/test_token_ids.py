"""Token IDs as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from common.token_ids import pack_ids, unpack_ids


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_packed_ids_come_back(ids: list[int]) -> None:
    """Four bytes per token, and nothing is lost."""
    packed = pack_ids(ids)
    assert len(packed) == 4 * len(ids)
    assert unpack_ids(packed) == tuple(ids)


def test_packed_ids_are_little_endian() -> None:
    """On every machine: workers of several kinds share them."""
    assert pack_ids([1, 256]) == b"\1\0\0\0\0\1\0\0"
