/* `l2cdb version`; with --verbose, which processor features and kernels run. */
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/session.h"

static bool json;

static const l2c_option options[] = {
    { 0, "json", L2C_OPTION_ON, &json, NULL, "print JSON", NULL },
    { 0 },
};

// "key: value" lines as members of an object.
static void print_json(const char *lines) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    if (lines == NULL) {
        l2c_json_out_key(&j, "l2cdb");
        l2c_json_out_string(&j, l2cdb_version());
    }
    while (lines != NULL && *lines != '\0') {
        size_t n = strcspn(lines, "\n");
        const char *colon = memchr(lines, ':', n);
        char key[64];
        if (colon != NULL && (size_t)(colon - lines) < sizeof key) {
            memcpy(key, lines, (size_t)(colon - lines));
            key[colon - lines] = '\0';
            const char *value = colon + 1 + strspn(colon + 1, " ");
            l2c_json_out_key(&j, key);
            l2c_json_out_text(&j, value, (size_t)(lines + n - value));
        }
        lines += n + (lines[n] == '\n');
    }
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    char *lines = NULL;
    if (l2c_options_common.verbose) {
        lines = l2cdb_version_verbose();
        if (lines == NULL) {
            return l2c_session_error(NULL, "out of memory");
        }
    }
    if (json) {
        print_json(lines);
    } else if (lines != NULL) {
        fputs(lines, stdout);
    } else {
        printf("l2cdb %s\n", l2cdb_version());
    }
    l2cdb_string_free(lines);
    return L2C_EXIT_DONE;
}

const l2c_command l2c_cmd_version = {
    .name = "version",
    .usage = "",
    .summary = "the version; with --verbose, what it runs on",
    .options = options,
    .run = run,
};
