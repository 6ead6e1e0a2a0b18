"""Names of blocks: each is the hash of its tokens and of all that stands before them.

Equal keys mean equal prefixes, so a block found by its key fits whoever looks for it. The hash is
cryptographic, and tenants never share a root: nobody can make up a prompt that meets another's.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b

from common.token_ids import pack_ids

BlockKey = bytes
"""32 bytes, the same on every host and in every process."""

KEY_LEN = 32
LAYOUT = 1  # count up when the tensor of a block means something else: old files are misses then

# Of equal length, and different: a root is never the key of a block.
_ROOT = b"headrace-kv-root"
_LINK = b"headrace-kv-link"


def root(tenant: str, model_fingerprint: str, dtype: str, block_tokens: int) -> BlockKey:
    """Return the parent of all first blocks of this tenant, model, dtype and block size."""
    digest = blake2b(digest_size=KEY_LEN, person=_ROOT)
    for field in (tenant, model_fingerprint, dtype, str(block_tokens), str(LAYOUT)):
        encoded = field.encode()
        digest.update(struct.pack("<Q", len(encoded)) + encoded)  # ("ab", "c") is not ("a", "bc")
    return digest.digest()


def extend(parent: BlockKey, ids: Sequence[int]) -> BlockKey:
    """Return the key of the block with these tokens after ``parent``; it may be a partial one."""
    return _link(parent, pack_ids(ids))


def beginnings(parent: BlockKey, ids: Sequence[int]) -> list[BlockKey]:
    """Return the keys of all blocks that start these tokens after ``parent``, shortest first."""
    digest = _begin(parent)
    keys: list[BlockKey] = []
    for token in struct.iter_unpack("4s", pack_ids(ids)):
        digest.update(*token)
        keys.append(digest.digest())
    return keys


def keys_of(root: BlockKey, ids: Sequence[int], block_tokens: int) -> list[BlockKey]:
    """Return the keys of the full blocks of a sequence; the rest of fewer tokens has none here."""
    packed = memoryview(pack_ids(ids))
    step = 4 * block_tokens
    keys: list[BlockKey] = []
    key = root
    for end in range(step, len(packed) + 1, step):
        key = _link(key, packed[end - step : end])
        keys.append(key)
    return keys


def _link(parent: BlockKey, packed: bytes | memoryview) -> BlockKey:
    digest = _begin(parent)
    digest.update(packed)
    return digest.digest()


def _begin(parent: BlockKey) -> blake2b:
    assert len(parent) == KEY_LEN
    return blake2b(parent, digest_size=KEY_LEN, person=_LINK)
