/* Where PoCL's threads run. */
#define _GNU_SOURCE /* sched_getaffinity */
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "program.h"

void program_keep_pocl_threads(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) != sysconf(_SC_NPROCESSORS_ONLN)) return;
    setenv("POCL_AFFINITY", "1", 0);
}
