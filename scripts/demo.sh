#!/usr/bin/env bash
# The Swallow recipe in miniature, with this program alone: an English model, a Japanese vocabulary, and continual
# pre-training on a 90:10 mixture with parallel text, with and without the new vocabulary. Every command of the engine
# is printed. Everything is left in runs/demo.
#
#   CORPUS=DIR  train on DIR/ja.txt and DIR/en.txt instead of the Debian Reference: UTF-8, documents closed by a line
#               <|endoftext|>; sections of equal numbers of lines in both give pairs
#   STEPS=N     steps of the English model (default 250)
#   EPOCHS=N    how often the Japanese text is read (default 0.7)
#   PIECES=N    size of each vocabulary (default 2000)
#   OUT=DIR     where everything is left (default runs/demo)
#   ENGINE=FILE the program (default target/release/swallow-engine)
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-target/release/swallow-engine}
demo=${OUT:-runs/demo}
data=$demo/data
pieces=${PIECES:-2000}
seq=256
batch=8
export LC_ALL=C # awk counts bytes

run() { printf '\n$ %s\n' "$*"; "$@"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# One book in Japanese and English, packaged by Debian and Ubuntu -> runs/demo/corpus/{ja,en}.txt
fetch_debian_reference() {
    local hint="take your own text instead: make demo CORPUS=directory of ja.txt and en.txt"
    command -v apt-get >/dev/null || die "there is no apt-get to fetch the Debian Reference with; $hint"
    mkdir -p "$demo/corpus"
    (
        cd "$demo/corpus"
        ls debian-reference-ja_*.deb debian-reference-en_*.deb >/dev/null 2>&1 && exit
        local packages=(debian-reference-ja debian-reference-en)
        # A container's image comes without package lists.
        apt-get download -qq "${packages[@]}" 2>/dev/null || {
            if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
            apt-get download -qq "${packages[@]}" 2>/dev/null
        }
    ) || die "apt-get could not download debian-reference-ja and -en; $hint"
    for package in "$demo"/corpus/*.deb; do dpkg-deb -x "$package" "$demo/corpus"; done
    for language in ja en; do
        awk -f scripts/debian-reference.awk "$demo"/corpus/usr/share/debian-reference/{pr,ch,ap}*."$language".html \
            >"$demo/corpus/$language.txt"
    done
}

# LANGUAGE -> data/LANGUAGE/{train.jsonl,valid.jsonl,held-out.txt}
split() {
    local text="$corpus/$1.txt" out="$data/$1"
    [ -s "$text" ] || die "$text: there is no such text"
    mkdir -p "$out"
    awk -v out="$out" -v total="$(wc -c <"$text")" -f scripts/split.awk "$text"
    [ -s "$out/valid.jsonl" ] || die "$text: too little text to hold some of it out: $(wc -c <"$text") bytes"
    printf '%s: %s documents to train on, %s held out\n' \
        "$1" "$(wc -l <"$out/train.jsonl")" "$(wc -l <"$out/valid.jsonl")"
}

# VOCABULARY TOKENIZER: tokenizes all parts into data/VOCABULARY.
tokenize() {
    mkdir -p "$data/$1"
    for language in ja en; do
        for part in train valid; do
            run "$engine" data tokenize --input "$data/$language/$part.jsonl" --tokenizer "$2/tokenizer.model" \
                --output "$data/$1/$language-$part" --bos --eos
        done
    done
    run "$engine" data tokenize --pairs "$data/pairs.ja" "$data/pairs.en" --tokenizer "$2/tokenizer.model" \
        --output "$data/$1/pairs" --bos --eos
}

# PREFIX: the tokens of a token file of 16-bit ids.
tokens() { echo $(($(wc -c <"$1.bin") / 2)); }

# NAME STEPS TENSOR PIPELINE, and [model] and [data] from standard input: the configuration of a run.
configure() {
    cat >"$demo/$1.toml"
    cat <<EOF >>"$demo/$1.toml"

[train]
seq_length = $seq
micro_batch_size = 2
global_batch_size = $batch
steps = $2
seed = 1234
eval_interval = $(($2 < 4 ? $2 : $2 / 4))
eval_steps = 2
${load:-}

[parallel]
tensor = $3
pipeline = $4

[optimizer]
lr = 1.5e-3
min_lr = 1.5e-4
schedule = "cosine"
warmup_steps = $(($2 < 40 ? 1 : 20))
betas = [0.9, 0.95]
weight_decay = 0.1
clip_grad = 1.0

[checkpoint]
dir = "$demo/$1"
interval = 0
EOF
}

# NAME RANKS: trains. Ranks share all cores: Open MPI would bind each of two ranks to one.
train() {
    run mpirun -n "$2" --oversubscribe --bind-to none "$engine" train --config "$demo/$1.toml"
    run "$engine" checkpoint export --from "$demo/$1" --to "$demo/$1-hf"
}

# VOCABULARY MODEL: continual pre-training of MODEL on the tokens of VOCABULARY, for EPOCHS of the Japanese text.
continue_training() {
    local at="$data/$1" steps tensor=2 pipeline=2 ranks=4
    steps=$(awk -v n="$(tokens "$at/ja-train")" -v epochs="${EPOCHS:-0.7}" -v each=$((seq * batch)) \
        'BEGIN { steps = int(n * epochs / 0.75 / each); print steps < 2 ? 2 : steps }')
    if [ "$gpus" -gt 0 ]; then ranks=$gpus tensor=1 pipeline=1; fi
    load="load = \"hf:$2\"" configure "$1" "$steps" "$tensor" "$pipeline" <<EOF
# 90 % Japanese, a sixth of it as pairs of paragraphs with their translations, and 10 % English, so that English is
# not forgotten. Validation is reported for each language.
[data]
train = [
    { prefix = "$at/ja-train", weight = 0.75 },
    { prefix = "$at/pairs", weight = 0.15 },
    { prefix = "$at/en-train", weight = 0.10 },
]
valid = [ { prefix = "$at/ja-valid", name = "ja" }, { prefix = "$at/en-valid", name = "en" } ]

[model]
hf = "$2"
EOF
    train "$1" "$ranks"
}

# MODEL: the values of `evaluate` that the table shows, of each language: characters a token, bits a byte.
measure() {
    for language in ja en; do
        "$engine" evaluate --model "$1" --text "$data/$language/held-out.txt" |
            awk '/^bits per byte/ { bits = $NF } /^tokens/ { tokens = $NF } /^characters/ { characters = $NF }
                END { printf "%.2f %.3f ", characters / tokens, bits }'
    done
}

[ -x "$engine" ] || die "$engine is not there; run: make demo"
gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)
while [ "$gpus" -gt 0 ] && [ $((batch % gpus)) != 0 ]; do gpus=$((gpus - 1)); done
corpus=${CORPUS:-$demo/corpus}
for part in data base base-hf start-hf expanded expanded-hf unexpanded unexpanded-hf tokenizers; do
    rm -rf "${demo:?}/$part"
done
mkdir -p "$data"
[ -n "${CORPUS:-}" ] || fetch_debian_reference
split ja
split en
awk -v ja="$data/pairs.ja" -v en="$data/pairs.en" -f scripts/pairs.awk "$corpus/ja.txt" "$corpus/en.txt"

# 1. An English model with an English vocabulary: the model to continue from.
english=$demo/tokenizers/english japanese=$demo/tokenizers/japanese both=$demo/tokenizers/both
run "$engine" tokenizer train --model-type bpe --vocab-size $pieces --input "$data/en/train.jsonl" --output "$english"
tokenize unexpanded "$english"
vocab=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$data/unexpanded/en-train.meta.json")
configure base "${STEPS:-250}" 1 1 <<EOF
# The English model: a Llama of about 4 million parameters.
[data]
train = [ { prefix = "$data/unexpanded/en-train" } ]
valid = [ { prefix = "$data/unexpanded/en-valid" } ]

[model]
architecture = "llama"
hidden_size = 192
intermediate_size = 512
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = $vocab
max_position_embeddings = $seq
rope_theta = 10000.0
rms_norm_eps = 1e-5
tie_word_embeddings = false
EOF
train base "$((gpus > 0 ? gpus : 2))"

# 2. Japanese pieces are added to its vocabulary, and rows to its embedding and output layer.
run "$engine" tokenizer train --model-type bpe --vocab-size $pieces --input "$data/ja/train.jsonl" --output "$japanese"
run "$engine" tokenizer expand "$english/tokenizer.model" --add "$japanese/tokenizer.model" --output "$both" \
    --held-out "$data/ja/held-out.txt" "$data/en/held-out.txt"
run "$engine" checkpoint expand-vocab --model "$demo/base-hf" --tokenizer "$both" --output "$demo/start-hf"
tokenize expanded "$both"

# 3. Continual pre-training with the new vocabulary and, for comparison, without it.
continue_training expanded "$demo/start-hf"
continue_training unexpanded "$demo/base-hf"
run "$engine" report "$demo/expanded" --against "$demo/unexpanded"

{
    echo "                                    characters a token   bits a byte      "
    echo "                                    ja        en         ja        en     "
    for row in "the English model:base" "  continued without expansion:unexpanded" \
        "expanded, before training:start" "  continued with expansion:expanded"; do
        # shellcheck disable=SC2046  # four numbers
        set -- $(measure "$demo/${row##*:}-hf")
        printf '%-35s %-9s %-10s %-9s %-7s\n' "${row%:*}" "$1" "$3" "$2" "$4"
    done
} | tee "$demo/table.txt"
cat <<EOF

  $demo/table.txt       this table, measured on text that no training saw
  $demo/expanded        metrics.jsonl, efficiency.html with both runs, tensorboard/
  $demo/expanded-hf     the model: transformers.AutoModelForCausalLM.from_pretrained("$demo/expanded-hf")
docs/recipe.md has the same path for Llama 3.1 8B and Swallow 7B on GPUs.
EOF
