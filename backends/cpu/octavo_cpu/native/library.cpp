// What the loader asks the library: its interface version, its instruction set, what this processor has, a thread pool.

#include "api.h"
#include "pool.h"
#include "vector.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

using namespace octavo;

OCTAVO_EXPORT int32_t octavo_abi_version() { return ABI_VERSION; }

OCTAVO_EXPORT const char* octavo_isa() { return OCTAVO_ISA; }

// Asked of the generic build alone, which runs on every processor: 2 for avx512, 1 for avx2, 0 for neither.
OCTAVO_EXPORT int32_t octavo_processor_level() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

OCTAVO_EXPORT Pool* octavo_pool(GompParallel parallel, int32_t threads) { return new Pool(parallel, threads); }

OCTAVO_EXPORT void octavo_pool_free(Pool* pool) { delete pool; }

// Asks for huge pages: reading weights and cache in a line then misses the page tables' cache far less often.
OCTAVO_EXPORT void octavo_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
    const int64_t huge = 2 << 20;
    const intptr_t begin = (reinterpret_cast<intptr_t>(memory) + huge - 1) / huge * huge;
    const intptr_t end = (reinterpret_cast<intptr_t>(memory) + bytes) / huge * huge;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}
