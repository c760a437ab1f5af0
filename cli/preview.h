/* Pictures in a terminal, through libchafa: kitty's, iTerm2's and sixel graphics, or coloured block
 * characters where the terminal knows none of them. */
#ifndef L2C_PREVIEW_H
#define L2C_PREVIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum l2c_preview_mode {
    L2C_PREVIEW_OFF,
    L2C_PREVIEW_AUTO, /* the best that the terminal says it has; off when `out` is no terminal */
    L2C_PREVIEW_KITTY,
    L2C_PREVIEW_ITERM,
    L2C_PREVIEW_SIXEL,
    L2C_PREVIEW_BLOCKS,
} l2c_preview_mode;

/* "off", "auto", …; false if there is no such mode. */
bool l2c_preview_mode_parse(l2c_preview_mode *out, const char *name);
#define L2C_PREVIEW_MODES "auto, kitty, iterm, sixel, blocks or off"

/* Prints RGB8 pixels [height, width, 3] into a field of at most `columns` × `rows` cells, keeping
 * their shape, and ends the line. Does nothing when the mode is (or AUTO becomes) OFF. False when
 * it could not be printed. */
bool l2c_preview_print(FILE *out, l2c_preview_mode mode, const uint8_t *rgb, uint32_t width,
                       uint32_t height, size_t columns, size_t rows);

#endif
