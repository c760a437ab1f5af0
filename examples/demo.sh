#!/bin/sh
# What `make demo` shows: photos in, three questions in three languages, what to type next.
# usage: demo.sh PROGRAM [PHOTO|FOLDER…]; without photos, those of two Debian packages.
set -eu

l2cdb=$1
shift
if [ $# -eq 0 ]; then
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
printf '$ %s ingest …   (%s arguments)\n' "$l2cdb" $#
"$l2cdb" ingest --db photos.l2cdb "$@"

show search -n 3 "a red ladybug"
show search -n 3 "eine Sanddüne"
show search -n 3 "les montagnes"

cat <<END

Ask your own question, in English, German, French or Czech:
  $l2cdb search "hory a obloha"
  $l2cdb search "the sea" + "at night" - people
  $l2cdb search -p "a bridge"                     # with the pictures
Then with your own photos:
  $l2cdb ingest ~/Pictures
  $l2cdb help
END
