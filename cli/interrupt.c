#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>

static l2cdb *volatile watched;
static volatile sig_atomic_t seen;

static void on_interrupt(int number) {
    (void)number;
    seen = 1;
    if (watched != NULL) {
        l2cdb_interrupt(watched);
    }
}

void l2c_interrupt_watch(l2cdb *db, bool once) {
    watched = db;
    // No SA_RESTART: a blocked read, of the line editor for one, shall return.
    struct sigaction action = { .sa_handler = on_interrupt,
                                .sa_flags = once ? (int)SA_RESETHAND : 0 };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

void l2c_interrupt_forget(const l2cdb *db) {
    if (watched == db) {
        watched = NULL;
    }
}

bool l2c_interrupt_seen(void) {
    return seen != 0;
}

bool l2c_interrupt_take(void) {
    bool was = seen != 0;
    seen = 0;
    return was;
}
