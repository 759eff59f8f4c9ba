#include "svg.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

struct tp_svg {
    char *text;
    size_t n_bytes, n_room;
    bool failed;
};

/* Colours of Okabe and Ito's palette (distinct with colour-blindness), a lighter set on dark ground. */
static const char style[] =
    "<style>\n"
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.title{font-size:15px;font-weight:600}\n"
    ".surface{fill:#ffffff}.ink{fill:#1b1f24}.muted{fill:#57606a}.grid{stroke:#e3e6ea;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}\n"
    ".thin{fill:none;stroke-width:1;stroke-opacity:.5;stroke-linejoin:round}.thick{fill:none;stroke-width:2.2;stroke-linejoin:round}\n"
    ".s0{stroke:#0072b2}.s1{stroke:#d55e00}.s2{stroke:#009e73}.s3{stroke:#cc79a7}.s4{stroke:#b07a00}.s5{stroke:#56b4e9}.s6{stroke:#6f5fc7}"
    ".s7{stroke:#57606a}\n"
    ".f0{fill:#0072b2}.f1{fill:#d55e00}.f2{fill:#009e73}.f3{fill:#cc79a7}.f4{fill:#b07a00}.f5{fill:#56b4e9}.f6{fill:#6f5fc7}.f7{fill:#"
    "57606a}\n"
    "@media "
    "(prefers-color-scheme:dark){.surface{fill:#0d1117}.ink{fill:#e6edf3}.muted{fill:#9198a1}.grid{stroke:#262c36}.axis{stroke:#656c76}\n"
    ".s0{stroke:#4da6e8}.s1{stroke:#ff9a57}.s2{stroke:#3fcf9f}.s3{stroke:#e5a3c6}.s4{stroke:#e3b341}.s5{stroke:#8fd0f5}.s6{stroke:#a99bf0}"
    ".s7{stroke:#9198a1}\n"
    ".f0{fill:#4da6e8}.f1{fill:#ff9a57}.f2{fill:#3fcf9f}.f3{fill:#e5a3c6}.f4{fill:#e3b341}.f5{fill:#8fd0f5}.f6{fill:#a99bf0}.f7{fill:#"
    "9198a1}}\n"
    "</style>\n";

static bool reserve(struct tp_svg *svg, size_t n_bytes)
{
    if (svg->failed) return false;
    if (svg->n_room - svg->n_bytes > n_bytes) return true;
    size_t n_room = svg->n_room ? svg->n_room : 8192;
    while (n_room - svg->n_bytes <= n_bytes) n_room *= 2;
    char *larger = realloc(svg->text, n_room);
    if (!larger) {
        svg->failed = true;
        return false;
    }
    svg->text = larger;
    svg->n_room = n_room;
    return true;
}

static void put(struct tp_svg *svg, const char *text, size_t n_bytes)
{
    if (!reserve(svg, n_bytes)) return;
    memcpy(svg->text + svg->n_bytes, text, n_bytes);
    svg->n_bytes += n_bytes;
    svg->text[svg->n_bytes] = '\0';
}

static void print(struct tp_svg *svg, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void print(struct tp_svg *svg, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (n > 0) put(svg, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

static void put_escaped(struct tp_svg *svg, const char *text)
{
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '&') put(svg, "&amp;", 5);
        else if (c == '<') put(svg, "&lt;", 4);
        else if (c == '>') put(svg, "&gt;", 4);
        else if (c == '"') put(svg, "&quot;", 6);
        else put(svg, c < 0x20 || c == 0x7f ? " " : text, 1);
    }
}

enum talpa_status tp_svg_begin(struct tp_svg **out, double width, double height, const char *title)
{
    struct tp_svg *svg = calloc(1, sizeof *svg);
    if (!svg) return tp_fail_memory("drawing", sizeof *svg);
    print(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" role=\"img\">\n<title>",
          width, height, width, height);
    put_escaped(svg, title);
    print(svg, "</title>\n");
    put(svg, style, sizeof style - 1);
    tp_svg_rect(svg, 0, 0, width, height, "surface");
    *out = svg;
    return TALPA_OK;
}

enum talpa_status tp_svg_end(char **text, size_t *n_bytes, struct tp_svg *svg)
{
    print(svg, "</svg>\n");
    const bool failed = svg->failed;
    if (failed) free(svg->text);
    else {
        *text = svg->text;
        *n_bytes = svg->n_bytes;
    }
    free(svg);
    return failed ? tp_fail_memory("drawing", 1 << 20) : TALPA_OK;
}

void tp_svg_rect(struct tp_svg *svg, double x, double y, double width, double height, const char *classes)
{
    print(svg, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" class=\"%s\"/>\n", x, y, width, height, classes);
}

void tp_svg_cell(struct tp_svg *svg, double x, double y, double width, double height, unsigned rgb)
{
    print(svg, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#%06x\"/>\n", x, y, width, height, rgb & 0xffffff);
}

void tp_svg_line(struct tp_svg *svg, double x1, double y1, double x2, double y2, const char *classes)
{
    print(svg, "<line x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" class=\"%s\"/>\n", x1, y1, x2, y2, classes);
}

void tp_svg_polyline(struct tp_svg *svg, const double *xy, int n, const char *classes)
{
    for (int i = 0; i < n;) {
        while (i < n && !(isfinite(xy[2 * i]) && isfinite(xy[2 * i + 1]))) i++;
        if (i == n) return;
        print(svg, "<polyline class=\"%s\" points=\"", classes);
        for (; i < n && isfinite(xy[2 * i]) && isfinite(xy[2 * i + 1]); i++) print(svg, "%.2f,%.2f ", xy[2 * i], xy[2 * i + 1]);
        print(svg, "\"/>\n");
    }
}

void tp_svg_circle(struct tp_svg *svg, double x, double y, double radius, const char *classes)
{
    print(svg, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%.2f\" class=\"%s\"/>\n", x, y, radius, classes);
}

void tp_svg_text(struct tp_svg *svg, double x, double y, enum tp_svg_anchor anchor, double degrees, const char *classes, const char *text)
{
    static const char *const anchors[] = {"start", "middle", "end"};
    print(svg, "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"%s\" class=\"%s\"", x, y, anchors[anchor], classes);
    if (degrees != 0.0) print(svg, " transform=\"rotate(%.1f %.2f %.2f)\"", degrees, x, y);
    put(svg, ">", 1);
    put_escaped(svg, text);
    print(svg, "</text>\n");
}
