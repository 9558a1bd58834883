"""Token files and sample order against megatron-core itself.

Random token files are written by megatron-core and by the engine and read by both; then random mixtures are laid out by
megatron-core's builder and by `swallow-engine data preview`, which shares no code with it, and every sample of the run
is compared id by id.

    python tests/checks/megatron_data.py --engine target/release/swallow-engine --rounds 30

Needs torch, numpy and `pip install --no-deps megatron-core==0.16.1`.
"""

import argparse
import json
import logging
import pathlib
import random
import subprocess
import tempfile

import numpy
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import compile_helpers

CONFIG = """
[model]
architecture = "llama"
hidden_size = 8
intermediate_size = 8
num_hidden_layers = 1
num_attention_heads = 1
vocab_size = {vocab}
max_position_embeddings = 4096
rope_theta = 10000.0
rms_norm_eps = 1e-5
[train]
backend = "cpu"
seq_length = {seq}
global_batch_size = {batch}
steps = {steps}
seed = {seed}
eval_interval = {eval_interval}
eval_steps = {eval_steps}
[optimizer]
lr = 1e-4
[data]
train = [{train}]
valid = [{valid}]
split = "{split}"
[checkpoint]
dir = "{folder}/run"
"""


class Tokenizer:
    """The attributes that GPTDatasetConfig requires."""
    vocab_size, eod, pad, unique_identifiers = None, -2, -3, {}


def engine(binary, *args):
    done = subprocess.run([binary, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(prefix, rng, vocab, dtype, documents):
    """A token file of megatron-core's; returns its documents."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    lengths = rng.integers(0 if documents > 3 else 1, 60, documents)
    made = [rng.integers(0, vocab, n) for n in lengths]
    for tokens in made:
        builder.add_document(torch.from_numpy(tokens.astype(numpy.int64)), [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    return made


def files(binary, folder, rng):
    """The engine reads megatron-core's files, of every kind; megatron-core reads the engine's."""
    for dtype, top in [(numpy.uint8, 255), (numpy.int8, 127), (numpy.int16, 32767), (numpy.uint16, 65535),
                       (numpy.int32, 2**31 - 1), (numpy.int64, 2**32 - 1)]:
        prefix = folder / numpy.dtype(dtype).name
        made = write(prefix, rng, top + 1, dtype, 200)
        out = engine(binary, "data", "inspect", prefix, "--documents", 200, "--tokens", 16)
        shown = [json.loads(line.split("tokens: ", 1)[1]) for line in out.splitlines() if line.startswith("document ")]
        assert shown == [tokens[:16].tolist() for tokens in made], f"{prefix}: read otherwise"
        assert "sound: 200 documents" in engine(binary, "data", "check", prefix, "--vocab-size", top + 1)


def tokenized(binary, folder, model):
    """megatron-core reads what `data tokenize` writes, and would write the same bytes."""
    lines = [f"Document {i}. " * (i % 7 + 1) for i in range(300)]
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    prefix = folder / "engine"
    engine(binary, "data", "tokenize", "--input", folder / "t.jsonl", "--tokenizer", model, "--output", prefix, "--eos")
    data = IndexedDataset(str(prefix))
    builder = IndexedDatasetBuilder(str(folder / "again.bin"), dtype=data.index.dtype)
    for i in range(len(data)):
        builder.add_document(torch.from_numpy(data[i].astype(numpy.int64)), [len(data[i])])
    builder.finalize(str(folder / "again.idx"))
    for end in ["bin", "idx"]:
        assert (folder / f"again.{end}").read_bytes() == (folder / f"engine.{end}").read_bytes(), f".{end} differs"
    assert len(data) == 300


def samples(dataset, n):
    """tokens and the last label of the first n samples."""
    for i in range(n):
        item = dataset[i]
        yield item["tokens"].tolist() + [int(item["labels"][-1])]


def mixture(folder, rng, name, weighted):
    sources = []
    for i in range(rng.choice([1, 1, 2, 3, 12])):
        prefix = folder / f"{name}{i}"
        # A split (that of the test set too) without a document would keep megatron-core counting epochs for ever.
        documents = int(rng.integers(60, 300))
        write(prefix, rng, 60000, numpy.uint16, documents)
        sources.append((str(prefix), round(float(rng.uniform(0.01, 5)), 3) if weighted else None))
    return sources


def toml(sources):
    entry = lambda p, w: f'{{ prefix = "{p}"' + (f", weight = {w}" if w is not None else "") + " }"
    return ", ".join(entry(*s) for s in sources)


def blend(sources):
    weights = [w for _, w in sources]
    return [p for p, _ in sources], None if weights[0] is None else weights


def round_of_orders(binary, folder, seed):
    rng = numpy.random.default_rng(seed)
    weighted, own_valid = rng.random() < 0.7, rng.random() < 0.3
    train = mixture(folder, rng, "train", weighted)
    # megatron-core does not blend a lone weighted source where each split has its own sources; the engine always does.
    if own_valid and len(train) == 1:
        train = [(train[0][0], None)]
    valid = mixture(folder, rng, "valid", False) if own_valid else []
    t = dict(seq=int(rng.integers(2, 40)), batch=int(rng.integers(1, 8)), steps=int(rng.integers(1, 120)),
             seed=int(rng.integers(0, 2**31)), eval_interval=int(rng.integers(1, 20)),
             eval_steps=int(rng.integers(1, 3)))
    split = random.Random(seed).choice(["90,10,0", "80,20,0", "0.5,0.3,0.2"])
    total = t["steps"] * t["batch"]
    total_valid = (t["steps"] // t["eval_interval"] + 1) * t["eval_steps"] * t["batch"]

    def build(train, valid, sizes):
        """megatron-core's datasets; without `valid` its samples are the split's share of `train`."""
        own = dict(blend_per_split=[blend(train), blend(valid), None])
        own = own if valid else dict(blend=blend(train), split=split)
        config = GPTDatasetConfig(
            random_seed=t["seed"], sequence_length=t["seq"], tokenizer=Tokenizer(), reset_position_ids=False,
            reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False, path_to_cache=None, **own)
        return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()

    path = folder / "c.toml"
    path.write_text(CONFIG.format(vocab=65536, train=toml(train), valid=toml(valid), split=split, folder=folder, **t))
    try:
        built = build(train, valid, [total, total_valid, 0])[0]
        # The engine evaluates each validation source by itself.
        if own_valid:
            sets = [build([(prefix, None)], [(prefix, None)], [1, total_valid, 0])[1] for prefix, _ in valid]
        else:
            sets = [build([(prefix, None)], [], [1, total_valid, 0])[1] for prefix, _ in train]
        long_enough = len(built) >= total and all(len(one) >= total_valid for one in sets)
        assert long_enough, "too little data for one pass"
    except (AssertionError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as e:
        # megatron-core cannot lay this out; the engine need not either, but it must report that or train.
        done = subprocess.run([binary, "data", "preview", "--config", str(path)], capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stderr
        return f"refused by megatron-core ({type(e).__name__}); the engine: {done.stderr.strip()[:160] or 'accepts'}"
    for name, n, datasets in [("train", total, [built]), ("valid", total_valid, sets)]:
        out = engine(binary, "data", "preview", "--config", path, "--split", name, "--samples", n).splitlines()
        assert len(out) == n * len(datasets), f"{name}: {len(out)} of {n} samples from each of {len(datasets)}"
        wanted = (ids for dataset in datasets for ids in samples(dataset, n))
        for k, (line, expected) in enumerate(zip(out, wanted)):
            assert json.loads(line)["ids"] == expected, f"seed {seed}: {name} sample {k} differs"
    return f"{total} + {total_valid} samples of {len(train)} + {len(valid)} sources agree"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="target/release/swallow-engine")
    parser.add_argument("--tokenizer", default="tests/golden/tokenizers/tokenizer.model")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        files(args.engine, pathlib.Path(folder), numpy.random.default_rng(args.seed))
        tokenized(args.engine, pathlib.Path(folder), args.tokenizer)
        print("token files agree", flush=True)
    for seed in range(args.seed, args.seed + args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{seed}: {round_of_orders(args.engine, pathlib.Path(folder), seed)}", flush=True)


if __name__ == "__main__":
    main()
