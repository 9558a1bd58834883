// A CUDA driver that is not one, for machines without: it has one device, of the compute capability FAKE_CAPABILITY
// (80 is 8.0), is made for the CUDA version FAKE_CUDA (12020 is 12.2), and ends cuInit with FAKE_INIT and loads
// of modules with FAKE_LOAD. Whatever was taken must have been given back, in its order, when the process ends.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int context, stream, modules, pinned;

static int number(const char* name) { return getenv(name) ? atoi(getenv(name)) : 0; }

static void must(int holds, const char* what) {
    if (holds) return;
    fprintf(stderr, "the driver was misused: %s\n", what);
    abort();
}

__attribute__((destructor)) static void end(void) { must(!context && !stream && !modules && !pinned, "something is left"); }

int cuInit(unsigned flags) { return flags ? 1 : number("FAKE_INIT"); }
int cuDriverGetVersion(int* version) { return *version = number("FAKE_CUDA"), 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int len, int device) { return snprintf(name, len, "Fake %d", device), 0; }
int cuDeviceGetUuid_v2(char* uuid, int device) { return memset(uuid, 1, 16), device; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)40 << 30, device; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 16: *value = 108; break;                           // multiprocessors
    case 38: *value = 40 << 20; break;                      // bytes of L2
    case 75: *value = number("FAKE_CAPABILITY") / 10; break; // major
    case 76: *value = number("FAKE_CAPABILITY") % 10; break; // minor
    case 97: *value = 163 << 10; break;                     // shared memory that a block may ask for
    default: must(0, "an attribute that nobody knows");
    }
    return device;
}

int cuDevicePrimaryCtxRetain(void** to, int device) { return context++, *to = &context, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return must(!stream && !modules, "the context goes first"), context--, device; }
int cuCtxSetCurrent(void* now) { return must(now == &context, "no context"), 0; }
int cuStreamCreate(void** to, unsigned flags) { return must(flags == 1, "a stream that blocks"), stream++, *to = &stream, 0; }
int cuStreamSynchronize(void* at) { return must(at == &stream, "no stream"), 0; }
int cuStreamDestroy_v2(void* at) { return must(at == &stream && stream-- == 1, "no stream"), 0; }

int cuMemHostAlloc(void** to, size_t bytes, unsigned flags) { return pinned++, *to = calloc(1, bytes), (int)flags; }
int cuMemHostGetDevicePointer_v2(unsigned long long* to, void* at, unsigned flags) { return *to = (unsigned long long)at, (int)flags; }
int cuMemFreeHost(void* at) { return must(pinned-- > 0, "no pinned memory"), free(at), 0; }

int cuModuleLoadData(void** to, const void* image) {
    must(context && memcmp(image, "\177ELF", 4) == 0, "no cubin");
    if (number("FAKE_LOAD")) return number("FAKE_LOAD");
    return modules++, *to = &modules, 0;
}
int cuModuleGetFunction(void** to, void* module, const char* name) { return must(module == &modules && *name, "no name"), *to = to, 0; }
int cuModuleUnload(void* module) { return must(module == &modules && modules-- > 0, "no module"), 0; }
int cuFuncGetAttribute(int* value, int attribute, void* function) { return must(attribute == 1 && function, "which?"), *value = 1024, 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) {
    // Static and dynamic shared memory together are what a block may have.
    return must(function && attribute == 8 && value == (162 << 10), "too much shared memory"), 0;
}
int cuGetErrorString(int error, const char** text) { return *text = error == 209 ? "no kernel image is available" : "no luck", 0; }
