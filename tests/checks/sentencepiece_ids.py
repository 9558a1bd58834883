"""Every document of the given JSON lines, encoded and decoded by `swallow-engine` and by Python's sentencepiece:
they must agree, in the ids, in the text, and in what `data tokenize` stores.

    python tests/checks/sentencepiece_ids.py --engine target/release/swallow-engine \
        --tokenizer a.model b.model --text ja.jsonl en.jsonl

Needs `pip install sentencepiece numpy`. Unigram models need the engine's own version, 0.2.1: 0.2.3 breaks ties in long
documents differently, where single precision runs out. Byte-pair models agree with both.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy
import sentencepiece


def engine(args, binary, **kw):
    return subprocess.run([binary, *map(str, args)], check=True, stdout=subprocess.PIPE, **kw).stdout


def stored(prefix):
    """The sequences of a .bin/.idx pair."""
    idx = prefix.with_suffix(".idx").read_bytes()
    dtype = {8: numpy.uint16, 4: numpy.int32}[idx[17]]
    n = int.from_bytes(idx[18:26], "little")
    lengths = numpy.frombuffer(idx, numpy.int32, n, 34)
    tokens = numpy.frombuffer(prefix.with_suffix(".bin").read_bytes(), dtype)
    return [part.tolist() for part in numpy.split(tokens, numpy.cumsum(lengths)[:-1])]


def compare(binary, model, path, key):
    texts = [json.loads(line)[key] for line in open(path, encoding="utf-8") if line.strip()]
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = [reference.encode(text) for text in texts]
    with open(path, "rb") as text:
        out = engine(["tokenizer", "encode", "--tokenizer", model, "--jsonl", "--key", key], binary, stdin=text)
    got = [json.loads(line) for line in out.splitlines()]
    assert len(got) == len(texts), f"{len(got)} of {len(texts)} documents"
    for i, (a, b) in enumerate(zip(got, expected)):
        assert a == b, f"{path}: document {i}: encoded otherwise"
    out = engine(["tokenizer", "decode", "--tokenizer", model, "--jsonl"], binary,
                 input="\n".join(map(json.dumps, expected)).encode())
    decoded = [json.loads(line)["text"] for line in out.splitlines()]
    for i, (a, ids) in enumerate(zip(decoded, expected, strict=True)):
        assert a == reference.decode(ids), f"{path}: document {i}: decoded otherwise"
    with tempfile.TemporaryDirectory() as folder:
        # Once as lines, once as one long text, which the engine encodes in parts.
        prefix, whole = pathlib.Path(folder, "lines"), pathlib.Path(folder, "whole.txt")
        engine(["data", "tokenize", "--input", path, "--key", key, "--tokenizer", model, "--output", prefix, "--bos",
                "--eos"], binary)
        bos, eos = reference.bos_id(), reference.eos_id()
        assert stored(prefix) == [[bos, *ids, eos] for ids in expected if ids], "data tokenize: other ids"
        whole.write_text("\n".join(texts), encoding="utf-8")
        engine(["data", "tokenize", "--input", whole, "--tokenizer", model, "--output", prefix], binary)
        assert stored(prefix) == [reference.encode("\n".join(texts))], "data tokenize: other ids for one long text"
    print(f"{model} {path}: {len(texts)} documents, {sum(map(len, expected))} tokens agree")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="target/release/swallow-engine")
    parser.add_argument("--tokenizer", nargs="+", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--key", default="text")
    args = parser.parse_args()
    for model in args.tokenizer:
        for path in args.text:
            compare(args.engine, model, path, args.key)


if __name__ == "__main__":
    main()
