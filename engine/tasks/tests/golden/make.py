"""Writes metrics.json: pairs of texts and what the Python references of the metrics say of them.

    python3 -m venv venv && venv/bin/pip install sacrebleu==2.6.0 rouge_score==0.1.2
    venv/bin/python engine/tasks/tests/golden/make.py

The sentences are this script's own; a seed cuts, joins and damages them.
"""

import collections
import json
import pathlib
import random

import sacrebleu
from rouge_score import rouge_scorer

ENGLISH = [
    "The ferry leaves the northern harbour at seven o'clock and returns before dusk.",
    "Rain fell for 3 days, and the river rose by 1.5 metres; nobody had expected that.",
    "She said, \"We'll need at least 2,000 bricks (red ones), won't we?\"",
    "An engine that is never serviced will, sooner or later, stop on the road.",
    "The price was $12.50 in 1998-1999 & is now about 40% higher.",
    "Three quiet students read the same book, page by page, in the library.",
    "Bread, cheese and a bottle of water are all that he carried up the hill.",
    "Email the well-known editor at desk@example.org - or call 555-0100.",
    "A fox with a brown coat crossed the frozen lake while the dogs slept.",
    "If x <= 3 then f(x) = x*x/2, else f(x) = [x]{1}~0.",
    "The committee agreed; the mayor, however, did not agree at all.",
    "In winter the north wind blows, and in summer the south wind blows.",
]
JAPANESE = [
    "朝の港では、漁師たちが網を直しながら船の帰りを待っている。",
    "川の水位は３日間で1.5メートル上がり、橋は通れなくなりました。",
    "「れんがが少なくとも2,000個は要るでしょう」と彼女は言った。",
    "図書館の窓ぎわで三人の学生が同じ本を静かに読んでいた。",
    "古い時計台は、町のどこからでも見ることができます。",
    "値段は１９９８年に１２５０円だったが、今は四割ほど高い。",
    "雪が積もった峠を越えて、ようやく温泉のある村に着いた。",
    "北風が吹く冬も、南風が吹く夏も、祖母は庭の手入れを欠かさない。",
    "新しい駅 は 来年の春 に 開く 予定 です。",
    "ＡＢＣ放送のニュースによると、明日は晴れ時々くもりだそうだ。",
]
ODD = [
    "", " ", "a", "語", ".", "-", "&quot;Yes&quot; &amp; &lt;no&gt;", "one-\ntwo\nthree", "<skipped>", "1,2.3,4.5-6-7",
    "...,,,", "tab\tand\u3000wide\u00a0space\u2003here", "Ünïcödé ÀÉÎ İstanbul K", "x" * 5, "9.", ",9", "a.b,c", "-5-",
    "Straße und Fuß", "😀 emoji 👍🏽 end", "the the the the", "the cat the cat the cat", "  lead and trail  \n",
    "\u001cfile\u001dgroup\u001f", "don't can't O'Neill's", "{curly} [square] `tick` ^hat _under_ |bar| ~tilde",
]


def damaged(rng, text):
    """The text with parts dropped, doubled, moved or exchanged."""
    units = text.split(" ") if text.count(" ") > 3 else list(text)
    joint = " " if text.count(" ") > 3 else ""
    for _ in range(rng.randrange(4)):
        if len(units) < 2:
            break
        at, to = sorted(rng.sample(range(len(units)), 2))
        change = rng.randrange(4)
        if change == 0:
            del units[at : at + 1 + rng.randrange(3)]
        elif change == 1:
            units[at], units[to] = units[to], units[at]
        elif change == 2:
            units[to:to] = units[at : at + 3]
        else:
            units = units[: to + 1]
    return joint.join(units)


def pairs(rng):
    """500 pairs of a text and one to three references."""
    out = []
    while len(out) < 500:
        source = rng.choice([ENGLISH, ENGLISH, JAPANESE, JAPANESE, ODD])
        text = rng.choice(source)
        if rng.random() < 0.15:
            text += rng.choice([" ", "\n", ""]) + rng.choice(source)
        references = [damaged(rng, text) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        if rng.random() < 0.1:
            references[0] = rng.choice(ENGLISH + JAPANESE + ODD)
        out.append((damaged(rng, text), references))
    return out


def char_f1(text, reference):
    """SQuAD's F1 with characters for words."""
    text, reference = list(text.strip()), list(reference.strip())
    same = sum((collections.Counter(text) & collections.Counter(reference)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(text), same / len(reference)
    return 2 * precision * recall / (precision + recall)


class Characters:
    """A tokenizer for rouge_score: every character that is not white space."""

    def tokenize(self, text):
        return [c for c in text if not c.isspace()]


def main():
    rows = pairs(random.Random(20))
    word = rouge_scorer.RougeScorer(["rouge2"])
    char = rouge_scorer.RougeScorer(["rouge2"], tokenizer=Characters())
    out = []
    for text, references in rows:
        row = {"text": text, "references": references}
        row["char_f1"] = max(char_f1(text, r) for r in references)
        row["rouge2_word"] = float(word.score_multi(references, text)["rouge2"].fmeasure)
        row["rouge2_char"] = float(char.score_multi(references, text)["rouge2"].fmeasure)
        for tokens in ["13a", "char"]:
            row[f"bleu_{tokens}"] = sacrebleu.sentence_bleu(text, references, tokenize=tokens).score
        out.append(row)
    # The corpus with all references of each text, and with the first alone.
    corpora = {}
    texts = [text for text, _ in rows]
    for name, most in [("all_references", 3), ("first_reference", 1)]:
        streams = [[(r + [None] * 3)[k] for _, r in rows] for k in range(most)]
        corpora[name] = {t: sacrebleu.corpus_bleu(texts, streams, tokenize=t).score for t in ["13a", "char"]}
    body = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in out)
    text = '{"corpora":' + json.dumps(corpora) + ',\n"pairs":[\n' + body + "\n]}\n"
    pathlib.Path(__file__).with_name("metrics.json").write_text(text, encoding="utf-8", newline="\n")


main()
