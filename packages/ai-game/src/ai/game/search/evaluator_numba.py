"""Compiled lookups of `ai.game.search.evaluator.CachedEvaluator`."""

import numpy as np

from ai.game.fast import jit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HALF, QUARTER = np.uint64(32), np.uint64(16)


@jit()
def find(bits, mixers, keys, held_logits, held_values, key, slot, logits, values, missing):  # type: ignore[no-untyped-def]
    """Writes each row's key, slot and evaluation where known; lists the others in `missing` and returns how many."""
    count = 0
    mask = np.uint64(keys.shape[0] - 1)
    for b in range(bits.shape[0]):
        one, other = np.uint64(0), np.uint64(0)
        for k in range(bits.shape[1]):
            x = np.uint64(bits[b, k])
            x ^= x >> QUARTER
            one += x * mixers[k, 0]
            other += x * mixers[k, 1]
        one = (one ^ (one >> HALF)) * GOLDEN
        other = (other ^ (other >> HALF)) * GOLDEN | np.uint64(1)
        key[b, 0], key[b, 1] = one, other
        s = np.int64(one & mask)
        slot[b] = s
        if keys[s, 0] == one and keys[s, 1] == other:
            for a in range(logits.shape[1]):
                logits[b, a] = held_logits[s, a]
            values[b] = held_values[s]
        else:
            missing[count] = b
            count += 1
    return count


@jit()
def keep(missing, new_logits, new_values, key, slot, keys, held_logits, held_values, logits, values):  # type: ignore[no-untyped-def]
    """Writes new evaluations into the answer and into their slots."""
    for i in range(missing.shape[0]):
        b = missing[i]
        s = slot[b]
        keys[s, 0], keys[s, 1] = key[b, 0], key[b, 1]
        held_values[s] = values[b] = new_values[i]
        for a in range(logits.shape[1]):
            held_logits[s, a] = logits[b, a] = new_logits[i, a]
