"""Make the golden chats: what transformers makes of a few conversations by the published templates in this folder.

usage: make.py        (in an environment with ../requirements.txt; writes tokenizer.json and golden.jsonl beside itself)

tokenizer.json is the small one of ../tokenizers with the control tokens of all templates added, and [END] for
templates of other tests. Each line of golden.jsonl has the name of a template, the messages, the ids and the mask;
`error` instead where transformers refuses. The mask is computed here from the offsets of the tokens: what each
assistant turn adds after the rendering of the messages before it (with the generation prompt), through the first
control token after the last thing that the template prints of it: its content, or the arguments of its last call where
it prints calls. For generation.jinja it is transformers' own.
"""
import json, pathlib, re
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).resolve().parent
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>",
            "<|start_header_id|>", "<|end_header_id|>", "[END]"]
BOS_EOS = {"llama3_1": ("<|begin_of_text|>", "<|eot_id|>"), "qwen2_5": (None, "<|im_end|>"), "qwen3": (None, "<|im_end|>")}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2, "units": ["C", 1.0, None, True]}}}

SPELLED = {"type": "function", "id": "call00001",
           "function": {"name": "print", "arguments": {"text": "<|im_end|>\n<|eot_id|> </s>"}}}
# The arguments as one string, as OpenAI's interface gives them.
STRING = {"type": "function", "id": "call00002", "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}}
BARE = {"type": "function", "id": "call00003", "function": {"name": "now", "arguments": {}}}

def called(content, *calls, answers=("rain",), after=("It rains.",)):
    chat = [{"role": "user", "content": "weather?"},
            {"role": "assistant", "content": content, "tool_calls": list(calls)}]
    chat += [{"role": "tool", "content": answer} for answer in answers]
    return chat + [{"role": ["assistant", "user"][i % 2], "content": text} for i, text in enumerate(after)]

def turns(*contents, system=None):
    roles = ["user", "assistant"]
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]

CONVERSATIONS = [
    turns("Hello there", "Hi, how are you?"),
    turns("昔々、ある所に", "お爺さんとお婆さんがいました。", "それから？", "川へ行きました。\n\n- 桃\n- 鬼 ", system="日本語で答えて。"),
    turns("  white space \n", " \n\n kept or not? \t\n", "again", "yes", "and again", "no"),
    turns("no answer to the last", "an answer", "and?"),
    turns("the end <|im_end|> inside", "a <|eot_id|> spelled <|im_end|> out</s> here", "and?", "done"),
    turns("think", "<think>\nfirst\n</think>\n\nsecond", "more", "<think>\nthird\n</think>\n\nfourth", system="Think."),
    turns("empty", ""),
    [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
     {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "It rains."}],
    [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
     {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sun."}, {"role": "user", "content": "Thanks"},
     {"role": "assistant", "content": "Bye"}],
    called("", CALL),
    called("", STRING, after=("It rains.", "And now?", "<think>\nstill\n</think>\n\nYes")),
    called("", CALL, BARE, answers=("rain", ""), after=("It rains.", "Thanks", "Bye")),
    called("<think>\nwhere?\n</think>\n\n", SPELLED, after=("Printed.", "Thanks", "Bye")),
    called("I print.", SPELLED, answers=(), after=()),
    called("", BARE, answers=(), after=()),
    turns("think", "<think>\na\n</think>\n\n", "more", "<think>\nb\n</think>\n\n"),
    turns("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", system="six turns 😀"),
]

def tokenizer(name, template):
    fast = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer.json"))
    fast.bos_token, fast.eos_token = BOS_EOS.get(name, ("<s>", "</s>"))
    fast.chat_template = template
    return fast

def end_of_content(text, start, message):
    content = (message.get("content") or "").strip()
    for call in (message.get("tool_calls") or [])[-1:]:
        arguments = call["function"]["arguments"]
        printed = [json.dumps(arguments, ensure_ascii=False)] + [arguments] * isinstance(arguments, str)
        ends = [text.find(p, start) + len(p) for p in printed if text.find(p, start) >= 0]
        if ends: return min(ends)
    if "</think>" in content and text.find(content, start) < 0:
        content = content.split("</think>")[-1].strip()
    at = text.find(content, start)
    assert at >= 0, (text, content)
    return at + len(content)

def mask(fast, messages, text, encoding):
    controls = set(fast.convert_tokens_to_ids(CONTROLS + ["<s>", "</s>"]))
    counts = [0] * len(encoding.ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant": continue
        head = fast.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        start = len(head)
        if not text.startswith(head):  # Mistral's system prompt moves to the last turn: after the message before
            before = messages[i - 1]["content"].strip()
            tail = head[head.rindex(before):]
            start = text.index(tail) + len(tail)
        end = end_of_content(text, start, message)
        stop = next((z for id, (a, z) in zip(encoding.ids, encoding.offsets) if a >= end and id in controls), len(text))
        for t, (a, z) in enumerate(encoding.offsets):
            if z > start and a < stop: counts[t] = 1
    return counts

def main():
    small = Tokenizer.from_file(str(HERE.parent / "tokenizers/tokenizer.json"))
    small.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROLS])
    file = json.loads(small.to_str())
    file["post_processor"]["trim_offsets"] = False  # the mask is about every byte, white space too
    (HERE / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False) + "\n")
    plain = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    lines = []
    for name in ("llama2", "llama3_1", "mistral", "qwen2_5", "qwen3", "generation"):
        template = (HERE / f"{name}.jinja").read_text().removesuffix("\n")
        fast = tokenizer(name, template)
        for messages in CONVERSATIONS:
            line = {"template": name, "messages": messages}
            try:
                text = fast.apply_chat_template(messages, tokenize=False)
            except Exception as e:
                lines.append(line | {"error": str(e)}); continue
            out = fast.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=name == "generation")
            encoding = plain.encode(text, add_special_tokens=False)
            assert encoding.ids == out["input_ids"]
            line["ids"] = out["input_ids"]
            counts = out["assistant_masks"] if name == "generation" else mask(fast, messages, text, encoding)
            lines.append(line | {"mask": "".join(map(str, counts))})
    (HERE / "golden.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines))

if __name__ == "__main__":
    main()
