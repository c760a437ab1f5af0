/* Ctrl-C ends what the database is doing, not the program. */
#ifndef L2C_INTERRUPT_H
#define L2C_INTERRUPT_H

#include <stdbool.h>

#include "engine/l2cdb.h"

/* From now on Ctrl-C interrupts what runs on db. `once`: the second one kills the program, since
 * whoever presses twice means it; else (at a prompt) each does the same as the first. */
void l2c_interrupt_watch(l2cdb *db, bool once);
/* After db was closed, not before: a Ctrl-C shall end a build that closing waits for. */
void l2c_interrupt_forget(const l2cdb *db);

/* Whether there was a Ctrl-C. */
bool l2c_interrupt_seen(void);
/* The same, true once for each. */
bool l2c_interrupt_take(void);

#endif
