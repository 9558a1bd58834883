# Documents, each closed by a line `<|endoftext|>` or by its file's end -> in the folder `out`, the first
# 95 % of the bytes as train.jsonl; the rest, which no training sees, as valid.jsonl and, as plain text
# for `evaluate`, as held-out.txt. Needs -v out=DIR and -v total=BYTES (of all input).
#
# A document that has grown past 16 kB ends at its next empty line, so that one long file has a tail too.

function close_document(    json, file) {
    if (text ~ /[^ \t\n]/) {
        held_out = (seen > 0.95 * total)
        json = text
        gsub(/\\/, "&&", json)
        gsub(/"/, "\\\\&", json)
        gsub(/\t/, "\\t", json)
        gsub(/\r/, "", json)
        gsub(/\n/, "\\n", json)
        gsub(/[\001-\037]/, "", json)
        file = out (held_out ? "/valid.jsonl" : "/train.jsonl")
        print "{\"text\": \"" json "\"}" > file
        if (held_out) print text "<|endoftext|>" > (out "/held-out.txt")
    }
    seen += length(text)
    text = ""
}

FNR == 1                          { close_document() }
/^<\|endoftext\|>$/               { close_document(); next }
/^[ \t\r]*$/ && length(text) > 16384 { close_document(); next }
                                  { text = text $0 "\n" }
END                               { close_document() }
