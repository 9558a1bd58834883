"""Random token streams that can be learned, their files, and their samples in the order in which the engine reads them."""
import numpy as np
import torch


def markov(n, vocab, rng):
    """A stream that can be learned: a noisy chain in which most tokens have one successor."""
    follows = rng.integers(0, vocab, vocab)
    out = np.zeros(n, np.int64)
    for i in range(1, n):
        out[i] = follows[out[i - 1]] if rng.random() < 0.8 else rng.integers(0, vocab)
    out[n // 2] = vocab - 1  # the largest id occurs
    return out


def documents(n, rng):
    """Lengths of documents that together have n tokens; some are longer than a sample, some are single tokens."""
    lengths = []
    while sum(lengths) < n:
        lengths.append(min(int(rng.choice([1, 2, rng.integers(5, 60), rng.integers(60, 200)])), n - sum(lengths)))
    return np.array(lengths, np.int32)


def write_tokens(prefix, tokens, lengths, dtype):
    """Megatron's indexed dataset: raw tokens, and their sequence lengths, byte offsets and document ends."""
    tokens.astype(dtype).tofile(f"{prefix}.bin")
    code = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}[np.dtype(dtype)]
    with open(f"{prefix}.idx", "wb") as f:
        f.write(b"MMIDIDX\x00\x00" + np.uint64(1).tobytes() + np.uint8(code).tobytes())
        f.write(np.uint64(len(lengths)).tobytes() + np.uint64(len(lengths) + 1).tobytes())
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        f.write(lengths.tobytes() + (starts * np.dtype(dtype).itemsize).tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())


class Tokens:
    """A stream of documents and its samples in sequential order."""

    def __init__(self, n, vocab, rng):
        self.n, self.ids, self.lengths = n, markov(n, vocab, rng), documents(n, rng)
        self.doc = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.counts = None  # whether each token counts as a target
        self.window = None  # the model's, where a mask is made here; transformers makes its own where there is none
        self.by_kind = False  # whether the model's layers differ, so that each kind has a mask of its own
        self.rows = None  # of a packed source

    def mask(self, t, rng):
        """Stretches that count and that do not; the targets of samples 8 to 11, of sample 17 and of step 4 do not count."""
        self.counts = np.zeros(len(self.ids), np.uint8)
        at = 0
        while at < len(self.ids):
            length = int(rng.integers(1, 30))
            self.counts[at:at + length] = rng.random() < 0.6
            at += length
        S, G = t["seq_length"], t["global_batch_size"]
        for first, end in [(8, 12), (17, 18), (3 * G, 4 * G)]:
            self.counts[first * S + 1:end * S + 1] = 0

    def batch(self, first, count, seq, masked, dtype):
        """Inputs and labels, [count, seq] each, and the additive attention mask, if any."""
        if self.rows is not None:
            return self.packed_batch(first, count, seq, dtype)
        at = (np.arange(first, first + count)[:, None] * seq) + np.arange(seq)
        mask = None
        if masked:
            doc = torch.from_numpy(self.doc[at])
            open_ = (doc[:, :, None] == doc[:, None, :]) & self.seen(seq)
            mask = torch.zeros(count, 1, seq, seq, dtype=dtype).masked_fill(~open_[:, None], -torch.inf)
        labels = self.ids[at + 1] if self.counts is None else np.where(self.counts[at + 1] > 0, self.ids[at + 1], -100)
        return torch.from_numpy(self.ids[at]), torch.from_numpy(labels), mask, None

    def seen(self, seq):
        """Whether a query sees a key: itself, and the positions before it that are inside of the window."""
        return torch.ones(seq, seq, dtype=torch.bool).tril().triu(1 - (self.window or seq))

    def pack(self, seq):
        """Rows of documents by best fit, in the order of the file: each (start, tokens) of a piece of the stream."""
        self.rows = []
        units = [(start + cut, min(seq, n - cut)) for start, n in zip(np.cumsum(self.lengths) - self.lengths, self.lengths) for cut in range(0, n, seq)]
        for first in range(0, len(units), 4096):
            rows, room = [], []
            for start, n in units[first:first + 4096]:
                fits = [(left, i) for i, left in enumerate(room) if left >= n]
                if not fits:
                    rows.append([])
                    room.append(seq)
                i = min(fits)[1] if fits else len(rows) - 1
                rows[i].append((start, n))
                room[i] -= n
            self.rows += rows

    def packed_batch(self, first, count, seq, dtype):
        """As `batch`, of rows: padding is id 0, and the last token of a unit predicts nothing. Also the positions."""
        ids, labels = np.zeros((count, seq), np.int64), np.full((count, seq), -100)
        unit, positions = np.zeros((count, seq), np.int64), np.zeros((count, seq), np.int64)
        for row in range(count):
            at = 0
            pieces = self.rows[(first + row) % len(self.rows)]
            for k, (start, n) in enumerate(pieces):
                ids[row, at:at + n] = self.ids[start:start + n]
                counts = self.counts[start + 1:start + n] > 0
                labels[row, at:at + n - 1] = np.where(counts, self.ids[start + 1:start + n], -100)
                unit[row, at:at + n], positions[row, at:at + n] = k, np.arange(n)
                at += n
            unit[row, at:], positions[row, at:] = len(pieces), np.arange(seq - at)
        unit = torch.from_numpy(unit)
        masks = []
        for seen in (self.seen(seq), torch.ones(seq, seq, dtype=torch.bool).tril()):
            open_ = (unit[:, :, None] == unit[:, None, :]) & seen
            masks.append(torch.zeros(count, 1, seq, seq, dtype=dtype).masked_fill(~open_[:, None], -torch.inf))
        mask = dict(sliding_attention=masks[0], full_attention=masks[1]) if self.by_kind else masks[0]
        return torch.from_numpy(ids), torch.from_numpy(labels), mask, torch.from_numpy(positions)


class Mixture:
    """Streams mixed in stages by Megatron's blend, which starts anew at each stage; the streams go on."""

    def __init__(self, stages, streams, samples_of_stages):
        self.streams, self.order, used = streams, [], {name: 0 for name in streams}
        self.counts = None  # all targets count
        for stage, samples in zip(stages, samples_of_stages):
            names, weights = [s["prefix"] for s in stage["train"]], np.array([s["weight"] for s in stage["train"]])
            shares, taken = weights / weights.sum(), np.zeros(len(names))
            for i in range(samples):
                chosen = int(np.argmax(shares * max(i, 1) - taken))
                taken[chosen] += 1
                self.order.append((names[chosen], used[names[chosen]]))
                used[names[chosen]] += 1

    def batch(self, first, count, seq, masked, dtype):
        chosen = [(self.streams[name], k) for name, k in self.order[first : first + count]]
        # A stream starts over at its end.
        parts = [stream.batch(k % ((stream.n - 1) // seq), 1, seq, masked, dtype) for stream, k in chosen]
        return tuple(None if p[0] is None else torch.cat(p) for p in zip(*parts))
