#include "tile_permission.h"

#include "base/status.h"

#if defined(__linux__) && defined(__x86_64__)
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of Linux's asm/prctl.h, fpu/types.h */

enum talpa_status tp_tile_permission(void)
{
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return TALPA_OK;
    return tp_fail(TALPA_E_DEVICE, "Linux refuses the use of AMX tiles (arch_prctl: %s); it needs version 5.16", strerror(errno));
}
#else
enum talpa_status tp_tile_permission(void)
{
    return tp_fail(TALPA_E_DEVICE, "AMX tiles need Linux on x86-64, to be permitted there");
}
#endif
