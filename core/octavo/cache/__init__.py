"""The paged KV cache as the host sees it: which blocks exist, who holds them, and which can be shared.

Only plain integers live here. The bytes are the device's; these classes decide which block a token's key and
value go to.
"""

from __future__ import annotations

from octavo.cache.block_pool import NULL_BLOCK, BlockPool
from octavo.cache.block_table import BlockTable
from octavo.cache.integrity import IntegrityError
from octavo.cache.manager import BlockManager, CacheStats, Copies
from octavo.cache.prefix_index import CachedBlock, Namespace, PrefixIndex, block_digest
from octavo.cache.sanitized_pool import SanitizedPool

__all__ = [
    "NULL_BLOCK",
    "BlockManager",
    "BlockPool",
    "BlockTable",
    "CacheStats",
    "CachedBlock",
    "Copies",
    "IntegrityError",
    "Namespace",
    "PrefixIndex",
    "SanitizedPool",
    "block_digest",
]
