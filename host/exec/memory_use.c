#include <sys/resource.h>

#include "io/file_map.h"
#include "runtime/memory.h"

struct talpa_memory_use talpa_device_memory(void)
{
    struct rusage usage;
    /* Linux counts in KiB. */
    const uint64_t host = getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0 ? (uint64_t)usage.ru_maxrss * 1024u : 0;
    return (struct talpa_memory_use){.device_bytes = tp_memory_bytes(),
                                     .device_peak_bytes = tp_memory_peak_bytes(),
                                     .mapped_file_bytes = tp_file_map_bytes(),
                                     .host_peak_bytes = host};
}

void talpa_device_memory_reset(void) { tp_memory_peak_reset(); }
