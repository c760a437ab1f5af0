# needs shared
cp "$SHARED"/data/coco-open/images/000000000285.jpg bear.jpg
good=$SHARED/models/l2c-mini

note "a model that is not there"
run encode --model nowhere dog

note "a folder that holds no model"
mkdir empty
run encode --model empty dog

note "a missing part, a cut file, a wrong shape"
cp -r "$good" cut && chmod -R u+w cut
head -c 100000 "$good/llm/model.safetensors" > cut/llm/model.safetensors
run encode --model cut dog
cp -r "$good" wide && chmod -R u+w wide
sed -i 's/"hidden_size": *384/"hidden_size": 512/' wide/llm/config.json
run encode --model wide dog
cp -r "$good" words && chmod -R u+w words
echo '{' > words/llm/tokenizer.json
run encode --model words dog
cp -r "$good" blind && chmod -R u+w blind
rm -r blind/vision
run encode --model blind ./bear.jpg

note "the database is not touched by a model that cannot be loaded"
run ingest --model cut bear.jpg
run ingest bear.jpg --quiet
run stats --db ~/.local/share/l2cdb/photos.l2cdb
