# The chapters of the Debian Reference, as Debian ships them in HTML -> plain text: one document for
# each first-level section, closed by a line `<|endoftext|>`. The HTML is pretty-printed, so every tag
# that begins or ends a block stands at the border of a line.

function flush() {
    gsub(/[ \t]+/, " ", text)
    sub(/^ /, "", text)
    sub(/ $/, "", text)
    if (text != "") { print text; written = 1 }
    text = ""
}

function close_document() {
    flush()
    if (written) print "<|endoftext|>"
    written = 0
}

function plain(s) {
    gsub(/<[^>]*>/, "", s)
    gsub(/&lt;/, "<", s)
    gsub(/&gt;/, ">", s)
    gsub(/&quot;/, "\"", s)
    gsub(/&amp;/, "\\&", s)
    return s
}

FNR == 1                     { close_document(); body = 0; pre = 0 }
/<h2 class="title"/          { close_document(); body = 1 }
/<div class="navfooter">/    { body = 0 }
!body                        { next }
/<pre/                       { flush(); pre = 1; sub(/^ +/, "") }
pre                          { print plain($0); written = 1; if (/<\/pre>/) pre = 0; next }
/<img /                      { next }
                             { text = text " " plain($0) }
/<\/(p|h[1-6]|li|tr|dt|dd)>/ { flush() }
END                          { close_document() }
