"""Seeds that follow from a place."""

import hashlib
import struct

from ai.data.batch.seeds import derive_seed, derive_seeds


def test_seeds_hash_the_whole_place_as_unsigned_words():
    packed = struct.pack("<3Q", 2**64 - 3, 4, 5)
    seed = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
    assert derive_seed(-3, 4, 5) == seed
    assert list(derive_seeds((-3, 4), [5, 2**64 + 5, 6])) == [seed, seed, derive_seed(-3, 4, 6)]
    assert 0 <= derive_seed() < 2**63
