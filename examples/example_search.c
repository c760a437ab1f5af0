/* The C interface in one page: photos in, a question, rows out; then the same in SQL.
 *
 *   cc example_search.c $(pkg-config --cflags --libs l2cdb) -o example_search
 *   ./example_search ~/Pictures "a dog on the beach" */
#include <stdio.h>
#include <string.h>

#include "engine/l2cdb.h"

static int failed(const l2cdb_error *err) {
    fprintf(stderr, "%s: %s\n%s\n", l2cdb_status_name(err->code), err->message, err->hint);
    return 1;
}

static int search(l2cdb *db, const char *question) {
    l2cdb_error err;
    l2cdb_term term = { .kind = L2CDB_TERM_TEXT, .text = question, .weight = 1 };
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = &term;
    q.terms_count = 1;
    q.k = 5;

    l2cdb_results *results;
    if (l2cdb_search(db, &q, &results, &err) != L2CDB_OK) {
        return failed(&err);
    }
    for (size_t i = 0; i < l2cdb_results_count(results); i++) {
        const l2cdb_row *row = l2cdb_results_row(results, i);
        printf("%.3f  %s\n", (double)row->score, row->path);
    }
    l2cdb_results_free(results);
    return 0;
}

static int search_sql(l2cdb *db, const char *question) {
    static const char sql[] = "SELECT path, score FROM images"
                              " ORDER BY embedding <=> embed(?1) LIMIT 5";
    l2cdb_error err;
    l2cdb_stmt *s;
    if (l2cdb_prepare(db, sql, NULL, &s, &err) != L2CDB_OK) {
        return failed(&err);
    }
    l2cdb_bind_text(s, 1, question, strlen(question));

    bool row = true;
    l2cdb_status rc = l2cdb_step(s, &row, &err);
    while (rc == L2CDB_OK && row) {
        printf("%.3f  %s\n", l2cdb_column_double(s, 1), l2cdb_column_text(s, 0));
        rc = l2cdb_step(s, &row, &err);
    }
    l2cdb_finalize(s);
    return rc == L2CDB_OK ? 0 : failed(&err);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s FOLDER QUESTION\n", argv[0]);
        return 2;
    }
    l2cdb_error err;
    l2cdb_open_options options;
    l2cdb_open_options_init(&options);
    l2cdb *db;
    if (l2cdb_open(&db, "example.l2cdb", &options, &err) != L2CDB_OK) {
        return failed(&err);
    }

    const char *folder = argv[1];
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    l2cdb_ingest_report report;
    int rc = 0;
    if (l2cdb_ingest(db, &folder, 1, &in, &report, &err) != L2CDB_OK) {
        rc = failed(&err);
    }
    if (rc == 0) {
        rc = search(db, argv[2]);
    }
    if (rc == 0) {
        rc = search_sql(db, argv[2]);
    }
    l2cdb_close(db);
    return rc;
}
