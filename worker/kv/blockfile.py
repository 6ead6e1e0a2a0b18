"""What a block looks like in a file: safetensors, with what proves that it is the right one.

The name of the file is the hash of the parent and the tokens, which are in the header; a checksum
covers name, dtype, shape and data. So every damage shows, and so does a file under a wrong name.
"""

import struct
from hashlib import blake2b

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.token_ids import pack_ids, unpack_ids
from worker.kv.chain import KEY_LEN, BlockKey, extend
from worker.kv.host import StoredBlock
from worker.kv.pool import KvShape

_TENSOR = "block"


class DamagedBlock(Exception):
    """The file does not hold the block that its name says."""


class _Metadata(msgspec.Struct, frozen=True):
    parent: str  # hex
    ids: str  # hex of the packed tokens
    checksum: str


class _Header(msgspec.Struct, frozen=True):
    metadata: _Metadata = msgspec.field(name="__metadata__")


_header_decoder = msgspec.json.Decoder(_Header)

# What the decoders of header, numbers and tensors raise at bytes that they do not understand.
_MALFORMED = (msgspec.MsgspecError, SafetensorError, ValueError, KeyError, struct.error)


def encode(block: StoredBlock) -> bytes:
    """Return the content of the block's file."""
    block.wait()
    data = block.data.contiguous()
    content = data.view(torch.uint8).numpy().data.cast("B")
    metadata = {
        "parent": block.parent.hex(),
        "ids": pack_ids(block.ids).hex(),
        "checksum": _checksum(block.key, data, content),
    }
    return save({_TENSOR: data}, metadata)


def decode(key: BlockKey, content: bytes, shape: KvShape | None = None) -> StoredBlock:
    """Return the block of a file.

    Raises ``DamagedBlock`` if it is not the one of this key, or not one of a cache of this shape.
    """
    header_end = 8 + int.from_bytes(content[:8], "little")
    try:
        metadata = _header_decoder.decode(content[8:header_end]).metadata
        data = load(content)[_TENSOR]
        parent, ids = bytes.fromhex(metadata.parent), unpack_ids(bytes.fromhex(metadata.ids))
    except _MALFORMED as error:
        raise DamagedBlock(repr(error)) from error
    if len(parent) != KEY_LEN or extend(parent, ids) != key:
        raise DamagedBlock("under the name of another")
    if _checksum(key, data, memoryview(content)[header_end:]) != metadata.checksum:
        raise DamagedBlock("not what was written")
    block = StoredBlock(key, parent, ids, data)
    if shape is not None and not _fits(block, shape):
        raise DamagedBlock("of another shape")
    return block


def _fits(block: StoredBlock, shape: KvShape) -> bool:
    if block.data.dtype != shape.dtype or block.data.dim() != 5:
        return False
    num_layers, both, tokens, num_heads, head_dim = block.data.shape
    return (num_layers, both, num_heads, head_dim) == (
        shape.num_layers,
        2,
        shape.num_heads,
        shape.head_dim,
    ) and len(block.ids) <= tokens <= shape.block_tokens


def _checksum(key: BlockKey, data: Tensor, content: memoryview) -> str:
    digest = blake2b(key, digest_size=32)
    digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
    digest.update(content)
    return digest.hexdigest()
