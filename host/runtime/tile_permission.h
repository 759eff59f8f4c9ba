/* The operating system's permission for AMX tiles. */
#ifndef TP_TILE_PERMISSION_H
#define TP_TILE_PERMISSION_H

#include "talpa/status.h"

/** Asks Linux on x86-64 for the use of tile data in this process, all of its threads included, those of drivers too. To be called before a
 *  kernel with tile instructions runs: without permission they end the process. May be repeated. TALPA_E_DEVICE if refused, or on another
 *  system. (Linux, Documentation/arch/x86/xstate.rst) */
enum talpa_status tp_tile_permission(void);

#endif
