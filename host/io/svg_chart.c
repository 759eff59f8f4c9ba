#include "svg_chart.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "svg.h"

/* Margins around the plot. */
enum { LEFT = 72, RIGHT = 24, TOP = 64, BOTTOM = 52, X_TICKS = 8, Y_TICKS = 6 };

struct frame {
    double left, top, width, height;     /* of the plot, in user units */
    double x_min, x_max, y_min, y_max;   /* data at its edges */
};

double tp_svg_chart_step(double range, int n)
{
    const double rough = range / n, power = pow(10.0, floor(log10(rough))), part = rough / power;
    return (part < 1.5 ? 1.0 : part < 3.5 ? 2.0 : part < 7.5 ? 5.0 : 10.0) * power;
}

static double at_x(const struct frame *f, double x) { return f->left + (x - f->x_min) / (f->x_max - f->x_min) * f->width; }
static double at_y(const struct frame *f, double y) { return f->top + f->height - (y - f->y_min) / (f->y_max - f->y_min) * f->height; }

static struct frame bounds(const struct tp_svg_chart *chart)
{
    struct frame f = {LEFT, TOP, chart->width - LEFT - RIGHT, chart->height - TOP - BOTTOM, INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (int s = 0; s < chart->n_series; s++)
        for (int i = 0; i < chart->series[s].n; i++) {
            const double x = chart->series[s].x[i], y = chart->series[s].y[i];
            if (!isfinite(x) || !isfinite(y)) continue;
            f.x_min = fmin(f.x_min, x);
            f.x_max = fmax(f.x_max, x);
            f.y_min = fmin(f.y_min, y);
            f.y_max = fmax(f.y_max, y);
        }
    if (!(f.x_min <= f.x_max)) f.x_min = f.y_min = 0.0, f.x_max = f.y_max = 1.0;
    if (f.x_max - f.x_min < 1e-9) f.x_min -= 0.5, f.x_max += 0.5;
    if (f.y_max - f.y_min < 1e-9 * (1.0 + fabs(f.y_max))) f.y_min -= 0.5, f.y_max += 0.5;
    /* Whole steps above and below, so that no value touches the frame. */
    const double step = tp_svg_chart_step(f.y_max - f.y_min, Y_TICKS);
    f.y_min = floor(f.y_min / step) * step;
    f.y_max = ceil(f.y_max / step) * step;
    return f;
}

static void axes(struct tp_svg *svg, const struct tp_svg_chart *chart, const struct frame *f)
{
    const double x_step = fmax(tp_svg_chart_step(f->x_max - f->x_min, X_TICKS), 1e-12),
                 y_step = tp_svg_chart_step(f->y_max - f->y_min, Y_TICKS);
    const double right = f->left + f->width, bottom = f->top + f->height;
    char text[48];
    for (double i = ceil(f->y_min / y_step - 1e-6); i * y_step <= f->y_max + 1e-6 * y_step; i++) {
        const double y = at_y(f, i * y_step);
        tp_svg_line(svg, f->left, y, right, y, "grid");
        snprintf(text, sizeof text, "%.6g", i == 0.0 ? 0.0 : i * y_step);
        tp_svg_text(svg, f->left - 8, y + 4, TP_SVG_END, 0, "muted", text);
    }
    for (double i = ceil(f->x_min / x_step - 1e-6); i * x_step <= f->x_max + 1e-6 * x_step; i++) {
        const double x = at_x(f, i * x_step);
        tp_svg_line(svg, x, f->top, x, bottom, "grid");
        tp_svg_line(svg, x, bottom, x, bottom + 5, "axis");
        snprintf(text, sizeof text, "%.10g", i == 0.0 ? 0.0 : i * x_step);
        tp_svg_text(svg, x, bottom + 19, TP_SVG_MIDDLE, 0, "muted", text);
    }
    tp_svg_line(svg, f->left, bottom, right, bottom, "axis");
    tp_svg_line(svg, f->left, f->top, f->left, bottom, "axis");
    tp_svg_text(svg, f->left, 26, TP_SVG_START, 0, "ink title", chart->title);
    tp_svg_text(svg, f->left + f->width / 2, chart->height - 12, TP_SVG_MIDDLE, 0, "ink", chart->x_label);
    tp_svg_text(svg, 18, f->top + f->height / 2, TP_SVG_MIDDLE, -90, "ink", chart->y_label);
}

/* Samples beside their labels, above the plot; the width of a letter is an estimate. */
static void legend(struct tp_svg *svg, const struct tp_svg_chart *chart, const struct frame *f)
{
    double x = f->left;
    for (int s = 0; s < chart->n_series; s++) {
        const struct tp_svg_series *series = &chart->series[s];
        char classes[24];
        const double y = TOP - 18;
        if (series->style == TP_SVG_POINTS) {
            snprintf(classes, sizeof classes, "f%d", series->colour);
            tp_svg_circle(svg, x + 11, y, 4, classes);
        } else {
            snprintf(classes, sizeof classes, "s%d %s", series->colour, series->style == TP_SVG_THIN ? "thin" : "thick");
            tp_svg_line(svg, x, y, x + 22, y, classes);
        }
        tp_svg_text(svg, x + 28, y + 4, TP_SVG_START, 0, "ink", series->label);
        x += 28 + 7.0 * (double)strlen(series->label) + 18;
    }
}

/* Series with more points than pixels keep the least and the greatest of each column, in their order. */
static int thin_out(double *xy, const struct tp_svg_series *series, const struct frame *f)
{
    const int columns = (int)f->width;
    int n = 0;
    if (series->n <= 2 * columns) {
        for (int i = 0; i < series->n; i++) {
            xy[2 * n] = at_x(f, series->x[i]);
            xy[2 * n++ + 1] = at_y(f, series->y[i]);
        }
        return n;
    }
    for (int c = 0; c < columns; c++) {
        const int first = (int)((long long)series->n * c / columns), end = (int)((long long)series->n * (c + 1) / columns);
        int least = -1, greatest = -1;
        for (int i = first; i < end; i++) {
            if (!isfinite(series->y[i])) continue;
            if (least < 0 || series->y[i] < series->y[least]) least = i;
            if (greatest < 0 || series->y[i] > series->y[greatest]) greatest = i;
        }
        const int pair[2] = {least < greatest ? least : greatest, least < greatest ? greatest : least};
        for (int k = 0; k < 2 && pair[0] >= 0; k++) {
            if (k && pair[1] == pair[0]) break;
            xy[2 * n] = at_x(f, series->x[pair[k]]);
            xy[2 * n++ + 1] = at_y(f, series->y[pair[k]]);
        }
    }
    return n;
}

static void draw(struct tp_svg *svg, double *xy, const struct tp_svg_series *series, const struct frame *f)
{
    char classes[24];
    const int n = thin_out(xy, series, f);
    if (series->style != TP_SVG_POINTS) {
        snprintf(classes, sizeof classes, "s%d %s", series->colour, series->style == TP_SVG_THIN ? "thin" : "thick");
        tp_svg_polyline(svg, xy, n, classes);
        return;
    }
    snprintf(classes, sizeof classes, "s%d thin", series->colour);
    tp_svg_polyline(svg, xy, n, classes);
    snprintf(classes, sizeof classes, "f%d", series->colour);
    for (int i = 0; i < n; i++)
        if (isfinite(xy[2 * i]) && isfinite(xy[2 * i + 1])) tp_svg_circle(svg, xy[2 * i], xy[2 * i + 1], 3.5, classes);
}

enum talpa_status tp_svg_chart_render(char **text, size_t *n_bytes, const struct tp_svg_chart *chart)
{
    const struct frame f = bounds(chart);
    struct tp_svg *svg;
    size_t most = 1;
    for (int s = 0; s < chart->n_series; s++)
        if ((size_t)chart->series[s].n > most) most = (size_t)chart->series[s].n;
    double *xy = malloc(2 * most * sizeof *xy);
    if (!xy) return tp_fail_memory("chart", 2 * most * sizeof *xy);
    enum talpa_status status = tp_svg_begin(&svg, chart->width, chart->height, chart->title);
    if (status == TALPA_OK) {
        axes(svg, chart, &f);
        legend(svg, chart, &f);
        for (int s = 0; s < chart->n_series; s++) draw(svg, xy, &chart->series[s], &f);
        status = tp_svg_end(text, n_bytes, svg);
    }
    free(xy);
    return status;
}
