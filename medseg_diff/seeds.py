"""Who owns which randomness: a seed from names, so that no random choice depends on order, batch or process."""

import hashlib


def seed_of(seed: int, *owner: str | int) -> int:
    """The 63-bit seed of one owner, e.g. seed_of(0, "BraTS_0012", 77, 3) for case, slice and member."""
    text = "\x1f".join([str(seed), *map(str, owner)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
