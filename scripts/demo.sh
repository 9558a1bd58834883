#!/usr/bin/env bash
# From text to a trained model in Hugging Face's format, on one rank a GPU, or on two CPU ranks where there is no GPU:
# fetch, tokenize, train, evaluate, export. Every command of the engine is printed. Everything is left in runs/demo.
#
#   CORPUS=DIR  train on the .txt files of DIR (UTF-8) instead of the Debian Reference
#   RANKS=N     ranks to train on, which must divide the batch of 8 sequences
set -euo pipefail
cd "$(dirname "$0")/.."

engine=target/release/swallow-engine
config=configs/demo.toml
demo=runs/demo
number() { awk -v key="$1" '$1 == key { print $3 }' "$config"; }
vocab=$(number vocab_size)
export LC_ALL=C # awk counts bytes

run() { printf '\n$ %s\n' "$*"; "$@"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# One rank a GPU, as many as divide the batch; two ranks without a GPU.
count_ranks() {
    local batch gpus ranks
    batch=$(number global_batch_size)
    gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)
    [ "$gpus" -gt 0 ] || gpus=2
    ranks=$((gpus < batch ? gpus : batch))
    while [ $((batch % ranks)) != 0 ]; do ranks=$((ranks - 1)); done
    echo "$ranks"
}

# One book in Japanese and English, packaged by Debian and Ubuntu.
fetch_debian_reference() {
    local hint="take your own text instead: make demo CORPUS=dir_of_txt_files"
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
}

# LANGUAGE FILE... -> runs/demo/data/LANGUAGE/{train.jsonl,valid.jsonl,held-out.txt}
split() {
    local language=$1 out="$demo/data/$1"
    shift
    mkdir -p "$out"
    awk -v out="$out" -v total="$(cat "$@" | wc -c)" -f scripts/split.awk "$@"
    [ -s "$out/valid.jsonl" ] || die "$language: too little text to hold some of it out: $(cat "$@" | wc -c) bytes"
    printf '%s: %s documents to train on, %s held out\n' \
        "$language" "$(wc -l <"$out/train.jsonl")" "$(wc -l <"$out/valid.jsonl")"
}

[ -x "$engine" ] || die "$engine is not there; run: make demo"
rm -rf "$demo/data" "$demo/run" "$demo/hf"
overrides=()
if [ -n "${CORPUS:-}" ]; then
    mapfile -d '' files < <(find "$CORPUS" -name '*.txt' -size +0 -print0 | sort -z)
    [ ${#files[@]} -gt 0 ] || die "CORPUS=$CORPUS: there are no .txt files in it"
    languages=own
    split own "${files[@]}"
    overrides=(
        --set "data.train=[{prefix=\"$demo/data/own/train\"}]"
        --set "data.valid=[{prefix=\"$demo/data/own/valid\"}]"
    )
else
    fetch_debian_reference
    languages="ja en"
    for language in $languages; do
        awk -f scripts/debian-reference.awk "$demo"/corpus/usr/share/debian-reference/{pr,ch,ap}*."$language".html \
            >"$demo/corpus/$language.txt"
        split "$language" "$demo/corpus/$language.txt"
    done
fi

tokenizer=$demo/data/tokenizer.json
run $engine tokenizer train --input "$demo"/data/*/train.jsonl --vocab-size "$vocab" --output "$tokenizer"
for language in $languages; do
    for part in train valid; do
        run $engine data tokenize --input "$demo/data/$language/$part.jsonl" --tokenizer "$tokenizer" \
            --output "$demo/data/$language/$part" --bos --eos
    done
done

ranks=${RANKS:-$(count_ranks)}
share=$(($(number global_batch_size) / ranks))
if [ "$share" -lt "$(number micro_batch_size)" ]; then overrides+=(--set "train.micro_batch_size=$share"); fi
# Ranks share all cores: Open MPI would bind each of two ranks to one.
run mpirun -n "$ranks" --oversubscribe --bind-to none $engine train --config "$config" "${overrides[@]}"

run $engine checkpoint export --from "$demo/run" --to "$demo/hf"
for language in $languages; do
    run $engine evaluate --model "$demo/hf" --text "$demo/data/$language/held-out.txt"
done

field() { sed -n "$1s/.*\"$2\": *\([^,}]*\).*/\1/p" "$demo/run/metrics.jsonl"; }
cat <<EOF

The training loss went from $(field 1 loss) to $(field '$' loss) nats a token in $(field '$' step) steps.
  $demo/data            the text, the tokenizer, the token files
  $demo/run             metrics.jsonl, config.toml, checkpoints/, tensorboard/
  $demo/hf              the model: transformers.AutoModelForCausalLM.from_pretrained("$demo/hf")
The numbers are in $config; train on your own text with: make demo CORPUS=dir_of_txt_files
EOF
