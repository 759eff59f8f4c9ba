#include "schedule.h"

#include <math.h>

double tp_schedule_rate(enum talpa_schedule schedule, double peak, int step, int warmup, int total)
{
    if (step < warmup) return peak * step / warmup;
    if (schedule == TALPA_SCHEDULE_CONSTANT) return peak;
    const double progress = (double)(step - warmup) / (total > warmup ? total - warmup : 1);
    if (schedule == TALPA_SCHEDULE_LINEAR) return peak * (progress < 1.0 ? 1.0 - progress : 0.0);
    return peak * 0.5 * (1.0 + cos(acos(-1.0) * (progress < 1.0 ? progress : 1.0)));
}
