/* Drawing primitives of SVG 1.1 into a text in memory: rectangles, lines, circles, text with escaping. Charts are in svg_chart.h.
 *
 * Colours are classes of a style sheet that follows the reader's light or dark theme: "surface" (background), "ink" (text), "muted" (quiet
 * text), "grid", "axis" for lines, "s0" .. "s7" (stroke) and "f0" .. "f7" (fill) for data. A shape takes its classes as one string, "s0
 * thick". */
#ifndef TP_SVG_H
#define TP_SVG_H

#include <stddef.h>

#include "talpa/status.h"

enum { TP_SVG_N_COLOURS = 8 };

enum tp_svg_anchor { TP_SVG_START, TP_SVG_MIDDLE, TP_SVG_END };

/** A drawing. The first failure (memory) is kept and reported by tp_svg_end; calls after it do nothing. */
struct tp_svg;

/** Begins a drawing of width x height user units with the background filled; `title` is for screen readers. The caller owns *out. */
enum talpa_status tp_svg_begin(struct tp_svg **out, double width, double height, const char *title);

/** Finishes: *text (free()) has *n_bytes and a NUL. Ends the drawing in every case. */
enum talpa_status tp_svg_end(char **text, size_t *n_bytes, struct tp_svg *svg);

void tp_svg_rect(struct tp_svg *svg, double x, double y, double width, double height, const char *classes);
/** A rectangle in a colour of its own, 0xRRGGBB: cells of a heat map. */
void tp_svg_cell(struct tp_svg *svg, double x, double y, double width, double height, unsigned rgb);
void tp_svg_line(struct tp_svg *svg, double x1, double y1, double x2, double y2, const char *classes);
/** Through n points xy[2n]; points that are not finite break the line. */
void tp_svg_polyline(struct tp_svg *svg, const double *xy, int n, const char *classes);
void tp_svg_circle(struct tp_svg *svg, double x, double y, double radius, const char *classes);
/** `text` is UTF-8; it is escaped, control characters become spaces. `degrees` turns it clockwise around its anchor. */
void tp_svg_text(struct tp_svg *svg, double x, double y, enum tp_svg_anchor anchor, double degrees, const char *classes, const char *text);

#endif
