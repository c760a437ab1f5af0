/* engine/sql_rewrite: what is rewritten, what is left alone, and where errors point. */
#include "tests/test.h"

#define CAPTION_ID                                                                                 \
    "coalesce((SELECT c.id FROM main.caption c WHERE c.image_id=captions.image_id AND "            \
    "c.text=captions.text),(SELECT seq+1 FROM main.sqlite_sequence WHERE name='caption' AND "      \
    "captions.text=captions.text),1)"

#include "engine/sql_rewrite.h"
#include "engine/sql_token.h"

typedef struct rewrite_case {
    const char *in, *out;
} rewrite_case;

static const rewrite_case cases[] = {
    // The forms of the product page.
    { "SELECT path, taken_at, score FROM images WHERE taken_at >= '2023-01-01' AND camera LIKE "
      "'X100%' ORDER BY embedding <=> embed('ein Hund am Strand') LIMIT 10;",
      "SELECT path, taken_at, score FROM images(embed('ein Hund am Strand')) WHERE taken_at >= "
      "'2023-01-01' AND camera LIKE 'X100%' ORDER BY images.rank LIMIT 10;" },
    { "SELECT id FROM images ORDER BY embedding <=> embed('a') * 2 + embed_image('b') - embed('c')",
      "SELECT id FROM images(vec_sub(vec_add(vec_scale(embed('a') , 2) , embed_image('b')) , "
      "embed('c'))) ORDER BY images.rank" },
    { "SELECT id FROM images WHERE embedding <=> embed('cat') < 0.7",
      "SELECT id FROM images(embed('cat')) WHERE images.distance < 0.7" },
    { "SELECT id FROM images WHERE embedding MATCH embed('cat') AND k = 10",
      "SELECT id FROM (SELECT * FROM images(embed('cat')) WHERE images.embedding IS NOT NULL AND 1 "
      "ORDER BY images.rank LIMIT (10)) AS images" },
    { "SELECT text FROM captions ORDER BY embedding <=> embed_image('x.jpg') LIMIT 5",
      "SELECT text FROM captions(embed_image('x.jpg')) ORDER BY captions.rank LIMIT 5" },
    { "SELECT * FROM hybrid('red boat', k => 20)", "SELECT * FROM hybrid('red boat', 20)" },
    { "SELECT * FROM similar(12345, k => 20)", "SELECT * FROM similar(12345, 20)" },
    { "SELECT * FROM hybrid('x', w_text => 0.3, k => ?)",
      "SELECT * FROM hybrid('x', ?1, NULL, 0.3)" },
    { "SELECT * FROM similar(id => 4)", "SELECT * FROM similar(4)" },
    { "SELECT * FROM hybrid(k => 5, text => 'x')", "SELECT * FROM hybrid('x', 5)" },

    // A column of an outer SELECT is constant while the inner one runs; a neighbour's is not.
    { "SELECT a.id, (SELECT b.id FROM images b WHERE b.id <> a.id ORDER BY b.embedding <=> "
      "a.embedding LIMIT 1) FROM images a",
      "SELECT a.id, (SELECT b.id FROM images(a.embedding) b WHERE b.id <> a.id ORDER BY b.rank "
      "LIMIT 1) FROM images a" },
    { "SELECT (SELECT b.id FROM images b, images c ORDER BY b.embedding <=> c.embedding LIMIT 1)",
      "SELECT (SELECT b.id FROM images b, images c ORDER BY cosine_distance(b.embedding , "
      "c.embedding) NULLS LAST LIMIT 1)" },

    // RETURNING of what a virtual table was not given.
    { "INSERT INTO captions(image_id, text) VALUES (1, 'x') RETURNING id",
      "INSERT INTO captions(image_id, text) VALUES (1, 'x') RETURNING " CAPTION_ID " AS id" },
    { "INSERT INTO main.captions(image_id, text) SELECT id, 'x' FROM images RETURNING text AS id, "
      "captions.rowid + 1, text id, (SELECT max(id) FROM images), abs(id);",
      "INSERT INTO main.captions(image_id, text) SELECT id, 'x' FROM images RETURNING text AS "
      "id, " CAPTION_ID " + 1, text id, (SELECT max(id) FROM images), abs(" CAPTION_ID ");" },
    { "INSERT INTO captions(image_id, text) VALUES (1, 'x') RETURNING *",
      "INSERT INTO captions(image_id, text) VALUES (1, 'x') RETURNING " CAPTION_ID " AS id,"
      "image_id,text,language,source,added_at,embedding,score,distance" },
    { "INSERT INTO notes(a) SELECT id FROM captions RETURNING id", NULL },
    { "SELECT id FROM captions", NULL },

    // Left alone, byte for byte.
    { "SELECT '<=>', \"a<=>b\", [<=>], `<=>` -- <=>\n/* <=> */ FROM t",
      "SELECT '<=>', \"a<=>b\", [<=>], `<=>` -- <=>\n/* <=> */ FROM t" },
    { "SELECT 'it''s <=> x'", "SELECT 'it''s <=> x'" },
    { "SELECT a * b + c - d FROM t WHERE x = ? AND y = :y", NULL },
    { "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END;", NULL },
    { "SELECT id FROM docs WHERE docs MATCH 'x' AND k = 3", NULL },
    { "SELECT a IS NOT DISTINCT FROM b FROM t", NULL },
    { "/* first */ SELECT 1", NULL },
    { "EXPLAIN QUERY PLAN SELECT 1", NULL },
    { "CREATE INDEX a ON b(c)", NULL },
    { "VALUES (1), (2)", NULL },

    // Exact wherever the index cannot answer.
    { "SELECT a <=> b < 3 FROM t", "SELECT cosine_distance(a , b) < 3 FROM t" },
    { "SELECT a<=>b", "SELECT cosine_distance(a,b)" },
    { "SELECT\"a\"<=>'[1]'FROM t ORDER BY\"a\"<=>?LIMIT 1",
      "SELECT cosine_distance(\"a\",'[1]')FROM t ORDER BY cosine_distance(\"a\",?1) NULLS LAST "
      "LIMIT "
      "1" },
    { "SELECT a.id FROM images a JOIN images b ON a.embedding <=> b.embedding < 0.2",
      "SELECT a.id FROM images a JOIN images b ON cosine_distance(a.embedding , b.embedding) < "
      "0.2" },
    { "SELECT id FROM images ORDER BY embedding <=> ? DESC LIMIT 3",
      "SELECT id FROM images ORDER BY cosine_distance(embedding , ?1) DESC LIMIT 3" },
    { "SELECT id FROM images ORDER BY camera, embedding <=> ?",
      "SELECT id FROM images ORDER BY camera, cosine_distance(embedding , ?1) NULLS LAST" },
    { "SELECT id FROM images ORDER BY embedding <=> vec_from_json(meta) ASC LIMIT 1",
      "SELECT id FROM images ORDER BY cosine_distance(embedding , vec_from_json(meta)) ASC NULLS "
      "LAST LIMIT 1" },
    { "SELECT id FROM images ORDER BY embedding <=> randomblob(2048)",
      "SELECT id FROM images ORDER BY cosine_distance(embedding , randomblob(2048)) NULLS LAST" },
    { "WITH images AS (SELECT 1 AS embedding) SELECT * FROM images ORDER BY embedding <=> ?",
      "WITH images AS (SELECT 1 AS embedding) SELECT * FROM images ORDER BY "
      "cosine_distance(embedding , ?1) NULLS LAST" },
    { "SELECT max(embedding <=> ?) FROM images",
      "SELECT max(cosine_distance(embedding , ?1)) FROM images" },
    { "DELETE FROM images WHERE embedding <=> embed('x') < 0.1",
      "DELETE FROM images WHERE cosine_distance(embedding , embed('x')) < 0.1" },
    { "SELECT i.id FROM images i, captions c ORDER BY embedding <=> ?",
      "SELECT i.id FROM images i, captions c ORDER BY cosine_distance(embedding , ?1) NULLS "
      "LAST" },
    { "SELECT id FROM images UNION SELECT id FROM captions ORDER BY 1",
      "SELECT id FROM images UNION SELECT id FROM captions ORDER BY 1" },
    { "SELECT id FROM images i ORDER BY embedding <=> (SELECT embedding FROM images j WHERE j.id = "
      "i.id + 1)",
      "SELECT id FROM images i ORDER BY cosine_distance(embedding , (SELECT embedding FROM images "
      "j WHERE j.id = i.id + 1)) NULLS LAST" },

    // The index through other doors.
    { "SELECT id, embedding <=> ? AS d FROM images WHERE camera = :c AND tags = ? ORDER BY d LIMIT "
      "?",
      "SELECT id, images.distance AS d FROM images(?1) WHERE camera = ?2 AND tags = ?3 ORDER BY "
      "images.rank LIMIT ?4" },
    { "SELECT id, embedding <=> :q FROM images ORDER BY 2",
      "SELECT id, images.distance FROM images(:q) ORDER BY images.rank" },
    { "SELECT *, embedding <=> :q d FROM images ORDER BY 2",
      "SELECT *, cosine_distance(embedding , :q) d FROM images ORDER BY 2" },
    { "SELECT * FROM images AS i WHERE 0.5 > ?7 <=> i.embedding",
      "SELECT * FROM images(?7) AS i WHERE 0.5 > i.distance" },
    { "SELECT i.path FROM main.images i JOIN captions c ON c.image_id = i.id ORDER BY i.embedding "
      "<=> embed('x') LIMIT 3",
      "SELECT i.path FROM main.images(embed('x')) i JOIN captions c ON c.image_id = i.id ORDER BY "
      "i.rank LIMIT 3" },
    { "SELECT id FROM images ORDER BY embedding <=> (SELECT embedding FROM images WHERE id = 5)",
      "SELECT id FROM images((SELECT embedding FROM images WHERE id = 5)) ORDER BY images.rank" },
    { "SELECT id FROM images WHERE id IN (SELECT image_id FROM captions ORDER BY embedding <=> "
      "embed('y') LIMIT 9)",
      "SELECT id FROM images WHERE id IN (SELECT image_id FROM captions(embed('y')) ORDER BY "
      "captions.rank LIMIT 9)" },
    { "WITH near AS (SELECT id FROM images ORDER BY embedding <=> ? LIMIT 5) SELECT * FROM near",
      "WITH near AS (SELECT id FROM images(?1) ORDER BY images.rank LIMIT 5) SELECT * FROM near" },
    { "SELECT id FROM images WHERE camera = 'x' AND embedding <=> ?1 <= 0.4 AND embedding <=> ?1 > "
      "0.1",
      "SELECT id FROM images(?1) WHERE camera = 'x' AND images.distance <= 0.4 AND images.distance "
      "> 0.1" },
    { "SELECT id FROM images WHERE id BETWEEN 1 AND 9 AND embedding MATCH ? AND k = ? AND "
      "length(path) > 3 ORDER BY distance",
      "SELECT id FROM (SELECT * FROM images(?1) WHERE id BETWEEN 1 AND 9 AND images.embedding IS "
      "NOT NULL AND 1 AND length(path) > 3 ORDER BY images.rank LIMIT (?2)) AS images ORDER BY "
      "distance" },

    // Vector algebra.
    { "SELECT -(embed('a') + embed('b')) * 2 <=> CASE WHEN 1 THEN embed('c') END < 3",
      "SELECT cosine_distance(vec_scale(vec_scale(-1, (vec_add(embed('a') , embed('b')))) , 2) , "
      "CASE WHEN 1 THEN embed('c') END) < 3" },
    { "SELECT vec_normalize(a + b), a + b", "SELECT vec_normalize(vec_add(a , b)), a + b" },
    { "SELECT a <=> b / 2 AND c", "SELECT cosine_distance(a , vec_div(b , 2)) AND c" },
    { "SELECT a - b -- why <=>\n <=> c",
      "SELECT cosine_distance(vec_sub(a , b) -- why <=>\n , c)" },
    { "SELECT a <=> b COLLATE nocase + 1, 2",
      "SELECT cosine_distance(a , vec_add(b COLLATE nocase , 1)), 2" },
    { "SELECT x NOT LIKE y <=> z", "SELECT x NOT LIKE cosine_distance(y , z)" },
    { "SELECT sum(a) FILTER (WHERE b) OVER w <=> c FROM t",
      "SELECT cosine_distance(sum(a) FILTER (WHERE b) OVER w , c) FROM t" },
};

/* Broken: a statement means something else than its writer thought, or reaches no index. */
static void statements_are_rewritten(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        l2c_rewrite r;
        l2cdb_error err;
        const char *in = cases[i].in, *out = cases[i].out != NULL ? cases[i].out : in;
        assert_ok(l2c_rewrite_run(&r, in, strlen(in), &err), &err);
        assert_string_equal(r.text.data, out);
        assert_int_equal(r.tail, strlen(in));
        assert_int_equal(r.changed, strcmp(in, out) != 0);
        l2c_rewrite again;
        assert_ok(l2c_rewrite_run(&again, r.text.data, r.text.size, &err), &err);
        assert_int_equal(again.operators, 0);
        l2c_rewrite_fini(&again);
        l2c_rewrite_fini(&r);
    }
}

/* Broken: an error points into text that the user never wrote. */
static void offsets_lead_back(void **state) {
    (void)state;
    const char *in =
        "SELECT a+b <=> c, nosuch FROM images ORDER BY embedding <=> embed('x') LIMT 3";
    l2c_rewrite r;
    l2cdb_error err;
    assert_ok(l2c_rewrite_run(&r, in, strlen(in), &err), &err);
    const char *words[] = { "nosuch", "LIMT", "FROM" };
    for (size_t i = 0; i < 3; i++) {
        size_t at = (size_t)(strstr(r.text.data, words[i]) - r.text.data);
        assert_int_equal(l2c_rewrite_offset(&r, at), strstr(in, words[i]) - in);
    }
    for (size_t i = 0; i < r.text.size; i++) {
        assert_true(l2c_rewrite_offset(&r, i) <= strlen(in));
    }
    size_t from, to, at = (size_t)(strstr(r.text.data, "cosine") - r.text.data);
    size_t size = (size_t)(strstr(r.text.data, ", nosuch") - r.text.data) - at;
    assert_true(l2c_rewrite_span(&r, at, size, &from, &to));
    assert_int_equal(from, 7);
    assert_int_equal(to, strstr(in, ", nosuch") - in);
    l2c_rewrite_fini(&r);
}

/* Broken: a mistake is reported somewhere else, or not at all. */
static void mistakes_are_placed(void **state) {
    (void)state;
    static const struct {
        const char *sql;
        int64_t offset;
    } bad[] = {
        { "SELECT <=> b", 7 },
        { "SELECT a <=> ", 13 },
        { "SELECT a <=> , b", 13 },
        { "SELECT (a <=>) b", 13 },
        { "SELECT a <-> b", 9 },
        { "SELECT a <#> b", 9 },
        { "SELECT * FROM similar(1, m => 3)", 25 },
        { "SELECT * FROM similar(k => 3, 4)", 30 },
        { "SELECT * FROM similar(1, id => 4)", 31 },
        { "SET", 3 },
        { "SET hnsw.ef_search", 18 },
        { "SET a = 1 2", 10 },
        { "CREATE INDEX ON images USING btree (embedding)", 29 },
        { "CREATE INDEX ON images USING hnsw (path)", 35 },
        { "CREATE INDEX ON images USING hnsw (embedding) WITH (m)", 53 },
        { "TUNE ADAPTER FROM x", 18 },
        { "DROP GENERATION two", 16 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        l2c_rewrite r;
        l2cdb_error err;
        assert_int_equal(l2c_rewrite_run(&r, bad[i].sql, strlen(bad[i].sql), &err), L2CDB_E_SQL);
        if (err.offset != bad[i].offset) {
            fail_msg("%s: offset %d, expected %d (%s)", bad[i].sql, (int)err.offset,
                     (int)bad[i].offset, err.message);
        }
    }
}

/* Broken: our own statements reach SQLite, which cannot read them. */
static void commands_are_recognised(void **state) {
    (void)state;
    static const struct {
        const char *sql;
        l2c_verb verb;
        const char *name, *table, *value;
        bool if_exists;
    } list[] = {
        { "", L2C_VERB_EMPTY, NULL, NULL, NULL, false },
        { " -- nothing; here\n", L2C_VERB_EMPTY, NULL, NULL, NULL, false },
        { "SELECT 1", L2C_VERB_PLAIN, NULL, NULL, NULL, false },
        { "explain SELECT 1", L2C_VERB_EXPLAIN, NULL, NULL, NULL, false },
        { "CREATE INDEX IF NOT EXISTS \"a b\" ON images USING HNSW (embedding vector_cosine_ops) "
          "WITH (m=32, ef_construction=100, quant='sq8');",
          L2C_VERB_CREATE_INDEX, "a b", "images", "kind=hnsw m=32 ef_construction=100 quant=sq8",
          true },
        { "CREATE INDEX ON captions (embedding)", L2C_VERB_CREATE_INDEX, NULL, "captions", "",
          false },
        { "CREATE UNIQUE INDEX a ON b(c)", L2C_VERB_PLAIN, NULL, NULL, NULL, false },
        { "DROP INDEX IF EXISTS a", L2C_VERB_DROP_INDEX, "a", NULL, NULL, true },
        { "SET search.exact = on", L2C_VERB_SET, "search.exact", NULL, "on", false },
        { "SET hnsw.ef_search TO 100", L2C_VERB_SET, "hnsw.ef_search", NULL, "100", false },
        { "TUNE ADAPTER FROM 'it''s.csv' WITH (epochs = 3)", L2C_VERB_TUNE, "it's.csv", NULL,
          "epochs=3", false },
        { "TUNE ADAPTER", L2C_VERB_TUNE, NULL, NULL, "", false },
        { "REINDEX", L2C_VERB_REINDEX, NULL, NULL, NULL, false },
        { "REINDEX captions", L2C_VERB_REINDEX, NULL, "captions", NULL, false },
        { "REINDEX GENERATION 4", L2C_VERB_REINDEX, "4", NULL, NULL, false },
        { "REINDEX my_table", L2C_VERB_PLAIN, NULL, NULL, NULL, false },
        { "ROLLBACK", L2C_VERB_PLAIN, NULL, NULL, NULL, false },
        { "ROLLBACK GENERATION;", L2C_VERB_ROLLBACK_GENERATION, NULL, NULL, NULL, false },
        { "DROP GENERATION 2", L2C_VERB_DROP_GENERATION, "2", NULL, NULL, false },
        { "VACUUM", L2C_VERB_VACUUM, NULL, NULL, NULL, false },
        { "VACUUM INTO 'x'", L2C_VERB_PLAIN, NULL, NULL, NULL, false },
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        l2c_rewrite r;
        l2cdb_error err;
        assert_ok(l2c_rewrite_run(&r, list[i].sql, strlen(list[i].sql), &err), &err);
        assert_int_equal(r.verb, list[i].verb);
        const char *found[] = { r.name, r.table, r.value };
        const char *expected[] = { list[i].name, list[i].table, list[i].value };
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(found[k] == NULL, expected[k] == NULL);
            if (found[k] != NULL) {
                assert_string_equal(found[k], expected[k]);
            }
        }
        assert_int_equal(r.if_exists, list[i].if_exists);
        l2c_rewrite_fini(&r);
    }
}

/* Broken: the second of two statements is lost or joined to the first, or parameters swap. */
static void statements_and_parameters_keep_their_order(void **state) {
    (void)state;
    const char *two = "SELECT ';' /* ; */; SELECT 2";
    l2c_rewrite r;
    l2cdb_error err;
    assert_ok(l2c_rewrite_run(&r, two, strlen(two), &err), &err);
    assert_string_equal(r.text.data, "SELECT ';' /* ; */;");
    assert_string_equal(two + r.tail, " SELECT 2");
    l2c_rewrite_fini(&r);

    const char *sql = "SELECT ?3, :a, ?, @b, $c::d(e), :a FROM images ORDER BY embedding <=> ?";
    assert_ok(l2c_rewrite_run(&r, sql, strlen(sql), &err), &err);
    assert_string_equal(r.text.data,
                        "SELECT ?3, ?4, ?5, ?6, ?7, ?4 FROM images(?8) ORDER BY images.rank");
    assert_int_equal(r.names_count, 8);
    const char *names[] = { NULL, NULL, "?3", ":a", NULL, "@b", "$c::d(e)", NULL };
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(r.names[i] == NULL, names[i] == NULL);
        if (names[i] != NULL) {
            assert_string_equal(r.names[i], names[i]);
        }
    }
    l2c_rewrite_fini(&r);
}

/* Broken: the shell sends half a statement, or waits for a semicolon that is there. */
static void completeness(void **state) {
    (void)state;
    static const struct {
        const char *sql;
        bool complete;
    } list[] = {
        { "", true },
        { "-- x", true },
        { "SELECT 1", false },
        { "SELECT 1;", true },
        { "SELECT 1; ", true },
        { "SELECT 1 -- ;", false },
        { "SELECT ';", false },
        { "SELECT 1; SELECT 2", false },
        { "SELECT 1; /* open", false },
        { "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1;", false },
        { "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END;", true },
        { ";", true },
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (l2c_rewrite_complete(list[i].sql, strlen(list[i].sql)) != list[i].complete) {
            fail_msg("%s", list[i].sql);
        }
    }
}

/* Broken: deep nesting or long chains end in a crash instead of an error. */
static void depth_is_bounded(void **state) {
    (void)state;
    static const char *const pieces[][2] = { { "(", ")" },     { "f(", ")" },
                                             { "- ", "" },     { "a+", "" },
                                             { "a <=> ", "" }, { "(SELECT a <=> ", ")" } };
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        l2c_buf b;
        l2c_buf_init(&b);
        l2c_buf_puts(&b, "SELECT x <=> ");
        for (size_t i = 0; i < 20000; i++) {
            l2c_buf_puts(&b, pieces[p][0]);
        }
        l2c_buf_puts(&b, "b");
        for (size_t i = 0; i < 20000; i++) {
            l2c_buf_puts(&b, pieces[p][1]);
        }
        l2c_rewrite r;
        l2cdb_error err;
        assert_int_equal(l2c_rewrite_run(&r, b.data, b.size, &err), L2CDB_E_LIMIT);
        l2c_buf_fini(&b);
    }
}

/* Broken: an allocation that fails leaks, crashes or passes for success. */
static void memory_runs_out(void **state) {
    (void)state;
    const char *sql = "SELECT id, embedding <=> :q + embed('x') d FROM images WHERE id = ?"
                      " ORDER BY d LIMIT 3";
    for (uint64_t n = 1;; n++) {
        l2c_rewrite r;
        l2cdb_error err;
        l2c_alloc_fail_at(n);
        l2cdb_status rc = l2c_rewrite_run(&r, sql, strlen(sql), &err);
        l2c_alloc_fail_at(0);
        if (rc == L2CDB_OK) {
            assert_true(n > 5);
            l2c_rewrite_fini(&r);
            break;
        }
        assert_int_equal(rc, L2CDB_E_NOMEM);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statements_are_rewritten),
        cmocka_unit_test(offsets_lead_back),
        cmocka_unit_test(mistakes_are_placed),
        cmocka_unit_test(commands_are_recognised),
        cmocka_unit_test(statements_and_parameters_keep_their_order),
        cmocka_unit_test(completeness),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
