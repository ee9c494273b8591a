"""The token loop: sessions, slots, scheduling, sampling, streams of tokens. Knows token ids, not text."""
