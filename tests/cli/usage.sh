note "exit status 2, the reason and where to read more"
run 2>&1 | grep -v '^ '
run serch
run help serch
run search
run search --limitt 3 dog
run search --limit many dog
run search --limit 0 dog
run search --limit
run search dog +
run search dog + -
run ingest
run ingest --precision f16 DIR
run ingest --js=1 DIR
run ingest --no DIR
run generations drop
run generations drop one
run generations frob
run index frob
run backup
run backup a b
run import
run caption add 1
run eval --images DIR
run encode
run encode --text --image dog
run tokenize
run import-model --vision x
run tune --objective pictures

note "exit status 1: asked rightly, but it cannot be done"
run search dog
run search --db nowhere.l2cdb dog
run stats
run encode --file missing.txt

note "help is not an error"
run --version
run help backup
run backup --help
