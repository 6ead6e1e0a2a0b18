"""Files of blocks: what was written comes back, and nothing else passes for it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from tests.worker.kv.blocks import SHAPE, make_block, same, with_dtype
from worker.kv.blockfile import DamagedBlock, decode, encode
from worker.kv.chain import extend
from worker.kv.host import StoredBlock

BLOCK = make_block()
CONTENT = encode(BLOCK)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn],
    ids=str,
)
def test_every_dtype_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    """Bits are not numbers here: NaN payloads survive."""
    block = make_block(shape=with_dtype(dtype))
    assert same(decode(block.key, encode(block), with_dtype(dtype)), block)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=4), st.binary(min_size=32, max_size=32))
def test_tokens_and_parent_come_back(ids: list[int], parent: bytes) -> None:
    """Partial blocks too, and even empty ones."""
    block = make_block(parent, ids)
    assert same(decode(block.key, encode(block), SHAPE), block)


def test_a_partial_block_may_be_shorter() -> None:
    """Data of just as many tokens as there are is a block of the same cache."""
    whole = make_block(ids=(1, 2))
    block = replace(whole, data=whole.data[:, :, :2].contiguous())
    assert same(decode(block.key, encode(block), SHAPE), block)


def test_no_bit_can_flip_unseen() -> None:
    """A flipped bit anywhere is found, or does not matter."""
    for position in range(8 * len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[position // 8] ^= 1 << position % 8
        try:
            block = decode(BLOCK.key, bytes(damaged))
        except DamagedBlock:
            continue
        assert same(block, BLOCK), f"bit {position}"


def test_no_truncation_passes() -> None:
    """Every shorter file is damaged, from the empty one on; so is a longer one."""
    for length in range(len(CONTENT)):
        with pytest.raises(DamagedBlock):
            decode(BLOCK.key, CONTENT[:length])
    with pytest.raises(DamagedBlock):
        decode(BLOCK.key, CONTENT + b"\0")


def test_zeros_do_not_pass() -> None:
    """After a power cut a file may have its length, but no content."""
    with pytest.raises(DamagedBlock):
        decode(BLOCK.key, bytes(len(CONTENT)))


@given(st.binary(max_size=200))
def test_junk_does_not_pass(junk: bytes) -> None:
    """Any bytes at all raise the one error."""
    for content in (junk, len(junk).to_bytes(8, "little") + junk):
        with pytest.raises(DamagedBlock):
            decode(BLOCK.key, content)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"parent": "", "ids": "", "checksum": ""},
        {"parent": "zz", "ids": "", "checksum": ""},
        {"parent": "00" * 32, "ids": "000000", "checksum": ""},
    ],
)
def test_foreign_safetensors_do_not_pass(metadata: dict[str, str] | None) -> None:
    """Files of others, of whatever metadata, are damaged to us."""
    for name in ("block", "weight"):
        with pytest.raises(DamagedBlock):
            decode(BLOCK.key, save({name: BLOCK.data}, metadata))


def test_a_second_tensor_does_not_pass() -> None:
    """The checksum covers all data of the file."""
    metadata = {"parent": BLOCK.parent.hex(), "ids": "01000000", "checksum": "00"}
    key = extend(BLOCK.parent, [1])
    with pytest.raises(DamagedBlock):
        decode(key, save({"block": BLOCK.data, "more": torch.zeros(3)}, metadata))


def test_a_file_under_another_name_does_not_pass() -> None:
    """The name is the hash of what is inside."""
    with pytest.raises(DamagedBlock):
        decode(make_block(ids=(9,)).key, CONTENT)


def test_another_parent_of_the_same_tokens_does_not_pass() -> None:
    """A block whose key does not follow from its parent was not written by us."""
    with pytest.raises(DamagedBlock):
        decode(BLOCK.key, encode(replace(BLOCK, parent=b"x" * 32)))


def _shaped(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> StoredBlock:
    return replace(BLOCK, data=torch.zeros(sizes, dtype=dtype))


@pytest.mark.parametrize(
    "block",
    [
        _shaped(3, 2, 4, 2, 4),
        _shaped(2, 1, 4, 2, 4),
        _shaped(2, 2, 5, 2, 4),
        _shaped(2, 2, 3, 2, 4),  # four tokens do not fit in
        _shaped(2, 2, 4, 4, 4),
        _shaped(2, 2, 4, 2, 8),
        _shaped(2, 2, 4, 2, 4, dtype=torch.float16),
        _shaped(2, 2, 4, 8),
    ],
    ids=lambda block: str(tuple(block.data.shape)),
)
def test_another_shape_does_not_pass(block: StoredBlock) -> None:
    """A file that this cache could not use is a miss, however sound it is."""
    content = encode(block)
    assert same(decode(block.key, content), block)
    with pytest.raises(DamagedBlock, match="shape"):
        decode(block.key, content, SHAPE)
