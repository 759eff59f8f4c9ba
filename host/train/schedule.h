/* Learning-rate schedules, with the conventions of transformers' get_scheduler. */
#ifndef TP_SCHEDULE_H
#define TP_SCHEDULE_H

#include "talpa/train.h"

/** Learning rate of optimizer step `step` (from 0) of `total`: linear warm-up from 0 over `warmup` steps, then constant, linear to 0, or a
 *  half cosine to 0. */
double tp_schedule_rate(enum talpa_schedule schedule, double peak, int step, int warmup, int total);

#endif
