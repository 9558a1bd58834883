# Two translations of one book, each as one document a section, closed by a line `<|endoftext|>` -> the paragraphs of
# the sections that have as many in both, line by line, in the files ja=FILE and en=FILE. Other sections are counted and
# left out, as are paragraphs that are the same in both, and what lies in the last tenth of either book: its end is held
# out.
# usage: awk -v ja=pairs.ja -v en=pairs.en -f pairs.awk BOOK.ja BOOK.en

FNR == 1             { book++; section = 0; n = 0 }
                     { bytes[book] += length($0) + 1 }
/^<\|endoftext\|>$/  { count[book, section] = n; end[book, section++] = bytes[book]; sections[book] = section; n = 0; next }
/[^ \t\r]/           { text[book, section, n++] = $0 }

function is_trained_on(s) {
    return s < sections[1] && s < sections[2] && end[1, s] < 0.9 * bytes[1] && end[2, s] < 0.9 * bytes[2]
}

END {
    printf "" > ja
    printf "" > en
    for (s = 0; is_trained_on(s); s++) {
        if (count[1, s] != count[2, s]) { skipped++; continue }
        for (i = 0; i < count[1, s]; i++) {
            if (text[1, s, i] == text[2, s, i]) continue
            print text[1, s, i] > ja
            print text[2, s, i] > en
            pairs++
        }
    }
    printf "pairs: %d paragraphs of %d sections; %d sections are left out, whose numbers of paragraphs differ\n", \
        pairs, s - skipped, skipped
}
