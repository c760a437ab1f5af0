#!/bin/sh
# What `make demo` shows: photos in, three questions in three languages, what to type next.
# usage: demo.sh PROGRAM [PHOTO|FOLDER…]; without photos, those of two Debian packages.
set -eu

l2cdb=$1
shift
ours=
if [ $# -eq 0 ]; then
    ours=yes
    for photo in $(dpkg -L lomiri-wallpapers-16.04 mate-backgrounds |
        grep -E '/backgrounds/([^/]*|mate/nature/[^/]*)\.jpg$'); do
        set -- "$@" "$photo"
    done
fi

show() {
    printf '\n$ %s' "$l2cdb"
    for word; do
        case $word in
        *[!a-zA-Z0-9_./=-]*) printf ' "%s"' "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$l2cdb" "$@"
}

# In the clone itself: from here, l2cdb finds photos.l2cdb without being told.
printf '$ %s ingest %s%s\n' "$l2cdb" "$1" "$([ $# -gt 1 ] && echo ' …')"
"$l2cdb" ingest --db photos.l2cdb "$@"

if [ -n "$ours" ]; then
    show search -n 3 "a red ladybug"
    show search -n 3 "eine Sanddüne"
    show search -n 3 "les montagnes"
else
    show search -n 3 "a dog on the grass"
    show search -n 3 "Kinder am Strand"
    show search -n 3 "une rue la nuit"
fi

cat <<END

Ask your own question, in English, German, French or Czech:
  $l2cdb search "hory a obloha"
  $l2cdb search "the sea" + "at night" - people
  $l2cdb search -p "a bridge"                     # with the pictures
Then with your own photos:
  $l2cdb ingest ~/Pictures
  $l2cdb help
END
