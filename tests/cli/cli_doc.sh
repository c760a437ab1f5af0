#!/bin/sh
# Holds the reference part of docs/cli.md (all below its marker) against what `l2cdb help` prints.
# usage: cli_doc.sh PROGRAM docs/cli.md      (GOLDEN_UPDATE=1 writes it instead)
set -eu

program=$1
doc=$2
marker='<!-- Below: what `l2cdb help COMMAND` prints, kept true by tests/cli/cli_doc.sh. -->'
temp=$(mktemp)
trap 'rm -f "$temp"' EXIT INT TERM

sed "/^$(printf '%s' "$marker" | sed 's/[^a-zA-Z0-9 ]/./g')\$/q" "$doc" > "$temp"
"$program" help | sed -n 's/^  \([a-z-]*\)  .*/\1/p' | while read -r command; do
    printf '\n## %s\n\n```text\n' "$command"
    "$program" help "$command"
    printf '```\n'
done >> "$temp"

if [ "${GOLDEN_UPDATE:-}" = 1 ]; then
    cp "$temp" "$doc"
else
    diff -u "$doc" "$temp"
fi
