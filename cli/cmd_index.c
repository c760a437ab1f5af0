/* `l2cdb index` and `l2cdb recall`: how neighbours are found, and how many of the true ones are. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/progress.h"
#include "cli/render.h"
#include "cli/session.h"

static struct {
    bool captions, json, apply;
    size_t k, samples;
    double target;
} o = { .k = 10, .samples = 200, .target = 0.95 };

static l2cdb_target target(void) {
    return o.captions ? L2CDB_CAPTIONS : L2CDB_IMAGES;
}

/* ---- index ----------------------------------------------------------------------------------- */

static const l2c_option index_options[] = {
    { 'c', "captions", L2C_OPTION_ON, &o.captions, NULL, "the captions' index, not the photos'",
      NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "print JSON", NULL },
    { 0 },
};

// "hnsw" "m=32" … → "kind=hnsw m=32 …"; a word without = is the kind.
static char *join_params(const char *const *args, size_t count) {
    size_t size = 1;
    for (size_t i = 0; i < count; i++) {
        size += strlen(args[i]) + sizeof "kind= ";
    }
    char *params = calloc(size, 1);
    for (size_t i = 0; params != NULL && i < count; i++) {
        strcat(params, i > 0 ? " " : "");
        strcat(params, strchr(args[i], '=') == NULL ? "kind=" : "");
        strcat(params, args[i]);
    }
    return params;
}

static void print_status_json(const l2cdb_index_info *info) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    const struct {
        const char *key, *value;
    } texts[] = { { "kind", info->kind },
                  { "quant", info->quant },
                  { "params", info->params },
                  { "why", info->why } };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        l2c_json_out_key(&j, texts[i].key);
        l2c_json_out_string(&j, texts[i].value);
    }
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = { { "rows", info->rows },
                   { "base_rows", info->base_rows },
                   { "fresh_rows", info->fresh_rows },
                   { "tombstones", info->tombstones },
                   { "file_bytes", info->file_bytes },
                   { "memory_bytes", info->memory_bytes } };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        l2c_json_out_key(&j, counts[i].key);
        l2c_json_out_uint(&j, counts[i].value);
    }
    l2c_json_out_key(&j, "build_s");
    l2c_json_out_double(&j, info->build_s, 3);
    l2c_json_out_key(&j, "recall");
    l2c_json_out_double(&j, info->recall >= 0 ? info->recall : (double)NAN, 4);
    l2c_json_out_key(&j, "building");
    l2c_json_out_bool(&j, info->building);
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static void print_status(const l2cdb_index_info *info) {
    char rows[32], base[32], fresh[32], tombstones[32], file[32], memory[32], build[32];
    printf("%s%s%s over %s rows\n", info->kind, *info->quant != '\0' ? " " : "", info->quant,
           l2c_progress_count(rows, info->rows));
    if (*info->why != '\0') {
        printf("  why       %s\n", info->why);
    }
    if (*info->params != '\0') {
        printf("  params    %s\n", info->params);
    }
    printf("  rows      %s in the base, %s fresh, %s deleted\n",
           l2c_progress_count(base, info->base_rows), l2c_progress_count(fresh, info->fresh_rows),
           l2c_progress_count(tombstones, info->tombstones));
    printf("  size      %s on disk, %s in memory\n", l2c_progress_bytes(file, info->file_bytes),
           l2c_progress_bytes(memory, info->memory_bytes));
    if (info->build_s > 0) {
        printf("  built in  %s\n", l2c_progress_duration(build, info->build_s));
    }
    if (info->recall >= 0) {
        printf("  recall    %.3f\n", info->recall);
    }
    if (info->building) {
        printf("  a new one is being built\n");
    }
}

static int status(l2cdb *db) {
    l2cdb_index_info info;
    l2cdb_error err;
    if (l2cdb_index_status(db, target(), &info, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (o.json) {
        print_status_json(&info);
    } else {
        print_status(&info);
    }
    return L2C_EXIT_DONE;
}

static int create(l2cdb *db, const char *const *args, size_t count) {
    char *params = count > 0 ? join_params(args, count) : NULL;
    l2c_progress progress = { .unit = "rows" };
    l2cdb_error err;
    l2cdb_status rc = l2cdb_index_create(db, target(), params, l2c_progress_show, &progress, &err);
    l2c_progress_clear();
    free(params);
    return rc == L2CDB_OK ? status(db) : l2c_session_fail(&err);
}

static int drop(l2cdb *db) {
    l2cdb_error err;
    return l2cdb_index_drop(db, target(), &err) == L2CDB_OK ? status(db) : l2c_session_fail(&err);
}

static int run_index(const char *const *args, size_t args_count) {
    const char *verb = args_count > 0 ? args[0] : "status";
    bool creating = strcmp(verb, "create") == 0, dropping = strcmp(verb, "drop") == 0;
    if (!creating && !dropping && strcmp(verb, "status") != 0) {
        return l2c_options_wrong(&l2c_cmd_index, "\"%s\" is none of create, drop and status", verb);
    }
    if (!creating && args_count > 1) {
        return l2c_options_wrong(&l2c_cmd_index, "index %s takes no parameters", verb);
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, creating || dropping ? 0 : L2C_SESSION_READ);
    if (rc == L2C_EXIT_DONE) {
        rc = creating ? create(db, args + 1, args_count - 1) : dropping ? drop(db) : status(db);
        l2c_session_close(db);
    }
    return rc;
}

const l2c_command l2c_cmd_index = {
    .name = "index",
    .usage = "[status | create [KIND] [NAME=VALUE…] | drop]",
    .summary = "see, build or drop the index of neighbours",
    .help = "Kinds: flat, hnsw, ivf, or auto (default), which chooses by the number of rows.\n"
            "Parameters: m, ef_construction, ef_search, nlist, nprobe, quant=f32|fp16|sq8|sq4|pq.\n"
            "An index is a cache: dropping it loses nothing, answers stay the same.\n\n"
            "  l2cdb index create hnsw m=32 ef_construction=100 quant=sq8\n",
    .options = index_options,
    .flags = L2C_COMMAND_DB,
    .args_max = 16,
    .run = run_index,
};

/* ---- recall ---------------------------------------------------------------------------------- */

static const l2c_option recall_options[] = {
    { 'c', "captions", L2C_OPTION_ON, &o.captions, NULL, "the captions' index, not the photos'",
      NULL },
    { 'k', "k", L2C_OPTION_SIZE, &o.k, "K", "neighbours that count (default 10)", NULL },
    { 's', "samples", L2C_OPTION_SIZE, &o.samples, "N", "rows asked about (default 200)", NULL },
    { 't', "target", L2C_OPTION_REAL, &o.target, "R",
      "find the least effort that reaches this recall\n(default 0.95)", NULL },
    { 0, "apply", L2C_OPTION_ON, &o.apply, NULL, "use that effort from now on", NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "print JSON", NULL },
    { 0 },
};

static void print_recall_json(const l2cdb_index_recall *r) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    l2c_json_out_key(&j, "k");
    l2c_json_out_uint(&j, r->k);
    l2c_json_out_key(&j, "samples");
    l2c_json_out_uint(&j, r->samples);
    l2c_json_out_key(&j, "recall");
    l2c_json_out_double(&j, r->recall, 5);
    l2c_json_out_key(&j, "query_ms");
    l2c_json_out_double(&j, r->query_ms, 4);
    l2c_json_out_key(&j, "exact_ms");
    l2c_json_out_double(&j, r->exact_ms, 4);
    l2c_json_out_key(&j, "wanted_recall");
    l2c_json_out_double(&j, r->wanted_recall, 5);
    l2c_json_out_key(&j, "wanted_param");
    l2c_json_out_uint(&j, r->wanted_param);
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static int run_recall(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, o.apply ? 0 : L2C_SESSION_READ);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2cdb_index_recall r = { 0 };
    l2cdb_error err;
    if (l2cdb_measure_recall(db, target(), o.k, o.samples, o.target, o.apply, &r, &err) !=
        L2CDB_OK) {
        rc = l2c_session_fail(&err);
    } else if (o.json) {
        print_recall_json(&r);
    } else if (r.samples == 0) {
        printf("the index is exact: nothing to measure\n");
    } else {
        printf("recall@%" PRIu64 " %.4f over %" PRIu64 " samples; %.3f ms a query, %.3f ms exact\n",
               r.k, r.recall, r.samples, r.query_ms, r.exact_ms);
        if (r.wanted_param > 0) {
            printf("recall %.2f needs ef_search (hnsw) or nprobe (ivf) of %" PRIu64 "%s\n",
                   r.wanted_recall, r.wanted_param, o.apply ? "; applied" : "");
        }
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_recall = {
    .name = "recall",
    .usage = "",
    .summary = "measure the index against exact search on your own rows",
    .options = recall_options,
    .flags = L2C_COMMAND_DB,
    .run = run_recall,
};
