"""200 conversations of one to six turns by the chat templates of tests/golden/chats, with real tokenizers:
`data tokenize --chat` gives the ids of transformers' apply_chat_template, and the mask is what the assistant says.

    python tests/checks/chats.py --engine target/release/swallow-engine --pairs test.ja test.en \
        --tokenizer llama2=DIR mistral=DIR llama3_1=DIR qwen2_5=DIR qwen3=DIR

--pairs: two files of lines, from which the messages are taken. Each DIR has a tokenizer.json or a SentencePiece
tokenizer.model, with a tokenizer_config.json. Needs `pip install transformers sentencepiece numpy`.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import tempfile

import numpy
import transformers

TEMPLATES = pathlib.Path(__file__).resolve().parent.parent / "golden/chats"


def conversations(texts, count):
    """Some with a system prompt, white space around a message, or a last question without an answer."""
    chats = []
    for i in range(count):
        chat = [{"role": "system", "content": random.choice(texts)}] if i % 4 == 0 else []
        for turn in range(1 + i % 6):
            ends = ["", "\n\n- a\n- b ", "  ", "\n"][random.randrange(4)]
            chat.append({"role": "user", "content": random.choice(texts) + ends})
            chat.append({"role": "assistant", "content": ends[1:] + random.choice(texts) + ends})
        if i % 11 == 10:
            chat.append({"role": "user", "content": random.choice(texts)})
        chats.append(chat)
    return chats


def expected_mask(tokenizer, chat, text, ids, offsets):
    mask = numpy.zeros(len(ids), numpy.uint8)
    for i, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(chat[:i], tokenize=False, add_generation_prompt=True)
        start = len(before)
        if not text.startswith(before):  # Mistral's system prompt moves to the last turn
            content = chat[i - 1]["content"].strip()
            tail = before[before.rindex(content):]
            start = text.index(tail) + len(tail)
        content = message["content"].strip()
        end = text.index(content, start) + len(content)
        special = set(tokenizer.all_special_ids)
        stop = next(z for id, (a, z) in zip(ids, offsets) if a >= end and id in special)
        for t, (a, z) in enumerate(offsets):
            mask[t] |= z > start and a < stop
    return mask


def check(engine, name, source, chats):
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work, "tokenizer")
        shutil.copytree(source, folder)
        (folder / "chat_template.jinja").write_text((TEMPLATES / f"{name}.jinja").read_text().removesuffix("\n"))
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        lines = "".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats)
        pathlib.Path(work, "chats.jsonl").write_text(lines)
        prefix = pathlib.Path(work, "out")
        command = [engine, "data", "tokenize", "--chat", "--input", f"{work}/chats.jsonl", "--tokenizer", folder]
        subprocess.run([*map(str, command), "--output", str(prefix)], check=True)
        index = prefix.with_suffix(".idx").read_bytes()
        count = int(numpy.frombuffer(index[18:26], numpy.uint64)[0])
        lengths = numpy.frombuffer(index[34:34 + 4 * count], numpy.int32)
        ids = numpy.fromfile(prefix.with_suffix(".bin"), {8: numpy.uint16, 4: numpy.int32}[index[17]])
        mask = numpy.fromfile(f"{prefix}.mask.bin", numpy.uint8)
        assert count == len(chats) and len(mask) == len(ids) == lengths.sum()
        at, other_ids, other_masks = 0, 0, []
        for chat, length in zip(chats, lengths):
            text = reference.apply_chat_template(chat, tokenize=False)
            out = reference(text, add_special_tokens=False, return_offsets_mapping=True)
            want = reference.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
            stored, stored_mask = ids[at:at + length].tolist(), mask[at:at + length]
            other_ids += stored != want
            expected = expected_mask(reference, chat, text, out["input_ids"], out["offset_mapping"])
            if stored == want and (stored_mask != expected).any():
                other_masks.append((chat, [(reference.convert_ids_to_tokens(int(id)), int(a), int(b))
                                           for id, a, b in zip(want, stored_mask, expected) if a != b]))
            at += length
        print(f"{name}: {count} conversations, {len(ids)} tokens: {other_ids} with other ids, "
              f"{len(other_masks)} with another mask")
        for chat, tokens in other_masks[:3]:
            print("   ", tokens, json.dumps(chat, ensure_ascii=False)[:300])
        return other_ids + len(other_masks)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="target/release/swallow-engine")
    parser.add_argument("--pairs", nargs=2, required=True)
    parser.add_argument("--tokenizer", nargs="+", required=True, metavar="TEMPLATE=DIR")
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    random.seed(5)
    texts = [line.strip() for path in args.pairs for line in open(path, encoding="utf-8") if line.strip()]
    chats = conversations(texts, args.count)
    wrong = sum(check(args.engine, *named.split("=", 1), chats) for named in args.tokenizer)
    raise SystemExit(wrong > 0)


main()
