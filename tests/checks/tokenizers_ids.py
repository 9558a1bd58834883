"""A tokenizer.json of `swallow-engine tokenizer train`: Python's tokenizers gives the same ids for every document, and
`data tokenize`, which cuts long texts, stores them; transformers loads the folder.

    python tests/checks/tokenizers_ids.py --engine target/release/swallow-engine --text ja.jsonl en.jsonl

Needs `pip install tokenizers transformers numpy`.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy
import tokenizers
import transformers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="target/release/swallow-engine")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--vocab-size", default="4000")
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for path in args.text for line in open(path, encoding="utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        file, prefix = pathlib.Path(folder, "tokenizer.json"), pathlib.Path(folder, "out")
        run = lambda *a: subprocess.run([args.engine, *map(str, a)], check=True)
        run("tokenizer", "train", "--input", *args.text, "--vocab-size", args.vocab_size, "--output", file)
        run("data", "tokenize", "--input", *args.text, "--tokenizer", file, "--output", prefix, "--bos", "--eos")
        reference = tokenizers.Tokenizer.from_file(str(file))
        expected = [[1, *reference.encode(text, add_special_tokens=False).ids, 2] for text in texts]
        stored = numpy.fromfile(prefix.with_suffix(".bin"), numpy.uint16)
        assert stored.tolist() == [id for ids in expected for id in ids], "other ids"
        auto = transformers.AutoTokenizer.from_pretrained(folder)
        assert (auto.bos_token_id, auto.eos_token_id) == (1, 2)
        assert auto.encode(texts[0], add_special_tokens=False) == expected[0][1:-1], "transformers gives other ids"
    print(f"{len(texts)} documents, {len(stored)} tokens agree")


if __name__ == "__main__":
    main()
