#include "svg_heatmap.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"
#include "svg.h"

enum { LEFT = 60, RIGHT = 24, TOP = 134, BOTTOM = 18, GAP_X = 46, GAP_Y = 62, LANE = 56, LANE_GAP = 12, SCALE = 180, LEGEND = 215 };

unsigned tp_svg_heatmap_colour(double x)
{
    /* viridis at ninths */
    static const unsigned char stops[10][3] = {{68, 1, 84},    {72, 40, 120},  {62, 74, 137},  {49, 104, 142}, {38, 130, 142},
                                               {31, 158, 137}, {53, 183, 121}, {109, 205, 89}, {180, 222, 44}, {253, 231, 37}};
    x = x > 0.0 ? x < 1.0 ? x : 1.0 : 0.0;
    const int i = x * 9.0 >= 8.0 ? 8 : (int)(x * 9.0);
    const double part = x * 9.0 - i;
    unsigned rgb = 0;
    for (int c = 0; c < 3; c++) rgb = rgb << 8 | (unsigned)lround(stops[i][c] + part * (stops[i + 1][c] - stops[i][c]));
    return rgb;
}

/* Sizes in user units; cells are whole numbers wide, so that no seams show between them. */
struct layout {
    double cell_width, cell_height, map_width, map_height, panel_width, width, height;
    int n_lanes;
};

static struct layout lay_out(const struct tp_svg_heatmap *m)
{
    struct layout l = {.cell_width = fmax(1.0, fmin(12.0, floor(112.0 / m->n_columns))),
                       .cell_height = fmax(2.0, fmin(12.0, floor(200.0 / m->n_rows)))};
    for (int k = 0; k < TP_SVG_HEATMAP_LANES; k++) l.n_lanes += m->lane_labels[k] != NULL;
    l.map_width = l.cell_width * m->n_columns;
    l.map_height = l.cell_height * m->n_rows;
    l.panel_width = l.map_width + l.n_lanes * (LANE + LANE_GAP);
    l.width = LEFT + m->n_across * l.panel_width + (m->n_across - 1) * GAP_X + RIGHT;
    l.width = fmax(l.width, l.n_lanes > 2 ? 720.0 : 560.0);
    l.height = TOP + m->n_down * (l.map_height + GAP_Y) + BOTTOM;
    return l;
}

/* A step of 1, 2 or 5 times a power of ten, so that at most about `most` of n labels are drawn. */
static int label_step(int n, int most)
{
    static const int factors[3] = {1, 2, 5};
    for (int power = 1;; power *= 10)
        for (int k = 0; k < 3; k++)
            if (n <= factors[k] * power * most) return factors[k] * power;
}

static void draw_axes(struct tp_svg *svg, const struct tp_svg_heatmap *m, const struct layout *l, double x, double y, bool is_first)
{
    char text[32];
    const int row_step = label_step(m->n_rows, (int)(l->map_height / 14.0) > 0 ? (int)(l->map_height / 14.0) : 1);
    const int column_step = label_step(m->n_columns, (int)(l->map_width / 16.0) > 0 ? (int)(l->map_width / 16.0) : 1);
    for (int r = 0; r < m->n_rows; r += row_step) {
        const double at = y + (r + 0.5) * l->cell_height;
        tp_svg_line(svg, x - 4, at, x, at, "axis");
        snprintf(text, sizeof text, "%d", r);
        tp_svg_text(svg, x - 7, at + 4, TP_SVG_END, 0, "muted", text);
    }
    for (int c = 0; c < m->n_columns; c += column_step) {
        const double at = x + (c + 0.5) * l->cell_width;
        snprintf(text, sizeof text, "%d", c);
        tp_svg_text(svg, at, y + l->map_height + 14, TP_SVG_MIDDLE, 0, "muted", text);
    }
    tp_svg_text(svg, x + l->map_width / 2, y + l->map_height + 29, TP_SVG_MIDDLE, 0, "muted", m->column_label);
    if (is_first) tp_svg_text(svg, x - 32, y + l->map_height / 2, TP_SVG_MIDDLE, -90, "muted", m->row_label);
}

static void draw_lane(struct tp_svg *svg, const struct tp_svg_heatmap *m, const struct layout *l, int lane, const double *values, double x,
                      double y)
{
    char text[32], classes[8];
    const double most = m->lane_max[lane] > 0.0 ? m->lane_max[lane] : 1.0;
    snprintf(classes, sizeof classes, "f%d", lane);
    tp_svg_line(svg, x + LANE, y, x + LANE, y + l->map_height, "grid");
    for (int r = 0; r < m->n_rows; r++) {
        if (!isfinite(values[r])) continue;
        const double length = LANE * fmax(0.0, fmin(1.0, values[r] / most));
        tp_svg_rect(svg, x, y + r * l->cell_height + 0.5, length, l->cell_height - 1.0, classes);
    }
    tp_svg_line(svg, x, y, x, y + l->map_height, "axis");
    tp_svg_text(svg, x, y + l->map_height + 14, TP_SVG_START, 0, "muted", "0");
    snprintf(text, sizeof text, "%.3g", m->lane_max[lane]);
    tp_svg_text(svg, x + LANE, y + l->map_height + 14, TP_SVG_END, 0, "muted", text);
}

static void draw_panel(struct tp_svg *svg, const struct tp_svg_heatmap *m, const struct layout *l, const struct tp_svg_heatmap_panel *panel,
                       double x, double y, bool is_first)
{
    for (int r = 0; r < m->n_rows; r++)
        for (int c = 0; c < m->n_columns; c++) {
            const double value = panel->cells[(size_t)r * (size_t)m->n_columns + (size_t)c];
            if (!isfinite(value)) continue;
            tp_svg_cell(svg, x + c * l->cell_width, y + r * l->cell_height, l->cell_width, l->cell_height, tp_svg_heatmap_colour(value));
        }
    draw_axes(svg, m, l, x, y, is_first);
    double lane_x = x + l->map_width + LANE_GAP;
    for (int k = 0; k < TP_SVG_HEATMAP_LANES; k++) {
        if (!m->lane_labels[k]) continue;
        if (panel->lanes[k]) draw_lane(svg, m, l, k, panel->lanes[k], lane_x, y);
        lane_x += LANE + LANE_GAP;
    }
}

/* What colours and bars mean, above the panels. */
static void draw_legend(struct tp_svg *svg, const struct tp_svg_heatmap *m)
{
    const double y = 66;
    double x = LEFT;
    char text[32], classes[8];
    for (int i = 0; i < SCALE / 3; i++) /* each reaches under the next, so that no seam shows */
        tp_svg_cell(svg, x + 3 * i, y - 10, i + 1 < SCALE / 3 ? 4 : 3, 12, tp_svg_heatmap_colour((i + 0.5) / (SCALE / 3)));
    for (int i = 0; i <= 4; i++) {
        snprintf(text, sizeof text, "%g", 0.25 * i);
        tp_svg_text(svg, x + SCALE * 0.25 * i, y + 15, TP_SVG_MIDDLE, 0, "muted", text);
    }
    tp_svg_text(svg, x, y - 16, TP_SVG_START, 0, "ink", m->scale_label);
    x += SCALE + 48;
    for (int k = 0, line = 0; k < TP_SVG_HEATMAP_LANES; k++) {
        if (!m->lane_labels[k]) continue;
        snprintf(classes, sizeof classes, "f%d", k);
        const double at = x + LEGEND * (line / 2), down = 19 * (line % 2);
        line++;
        tp_svg_rect(svg, at, y - 24 + down, 18, 9, classes);
        tp_svg_text(svg, at + 25, y - 16 + down, TP_SVG_START, 0, "ink", m->lane_labels[k]);
    }
}

enum talpa_status tp_svg_heatmap_render(char **text, size_t *n_bytes, const struct tp_svg_heatmap *m)
{
    const struct layout l = lay_out(m);
    struct tp_svg *svg;
    TP_TRY(tp_svg_begin(&svg, l.width, l.height, m->title));
    tp_svg_text(svg, LEFT, 24, TP_SVG_START, 0, "ink title", m->title);
    if (m->subtitle) tp_svg_text(svg, l.width - RIGHT, 24, TP_SVG_END, 0, "muted", m->subtitle);
    draw_legend(svg, m);
    for (int across = 0; across < m->n_across; across++)
        tp_svg_text(svg, LEFT + across * (l.panel_width + GAP_X), TOP - 28, TP_SVG_START, 0, "muted", m->across_titles[across]);
    for (int down = 0; down < m->n_down; down++) {
        const double y = TOP + down * (l.map_height + GAP_Y);
        tp_svg_text(svg, LEFT, y - 8, TP_SVG_START, 0, "ink title", m->down_titles[down]);
        for (int across = 0; across < m->n_across; across++) {
            const struct tp_svg_heatmap_panel *panel = &m->panels[down * m->n_across + across];
            if (panel->cells) draw_panel(svg, m, &l, panel, LEFT + across * (l.panel_width + GAP_X), y, across == 0);
        }
    }
    return tp_svg_end(text, n_bytes, svg);
}
