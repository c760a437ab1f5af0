# Makes the manual page l2cdb.1 of docs/cli.md. Knows the Markdown that file uses: # and ##, fenced
# code, lists, **bold**, `code` and comments.
function inline(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    while (match(text, /\*\*[^*]+\*\*/)) {
        text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 2, RLENGTH - 4) "\\fR" \
            substr(text, RSTART + RLENGTH)
    }
    while (match(text, /`[^`]+`/)) {
        text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 1, RLENGTH - 2) "\\fR" \
            substr(text, RSTART + RLENGTH)
    }
    return text
}
function guard(text) {
    return text ~ /^[.']/ ? "\\&" text : text
}
NR == 1 {
    print ".TH L2CDB 1\n.SH NAME\nl2cdb \\- find photos by what they show\n.SH DESCRIPTION"
    next
}
/^```/ {
    code = !code
    print code ? ".PP\n.nf\n.RS 2" : ".RE\n.fi"
    next
}
code { gsub(/\\/, "\\e"); gsub(/-/, "\\-"); print guard($0); next }
/^<!--/ { next }
/^## / { print ".SH " toupper(inline(substr($0, 4))); next }
/^- / { print ".IP \\(bu 2\n" guard(inline(substr($0, 3))); next }
/^[0-9]\. / { print ".IP " $1 " 3\n" guard(inline(substr($0, 4))); next }
/^$/ { print ".PP"; next }
{ sub(/^ +/, ""); print guard(inline($0)) }
