/* A libnvidia-ml.so.1 whose answers stand in a text file that is read anew on each call ($NVML_STUB_STATE).
 *
 * One "key=value" a line, the last one wins:
 *   count=2  driver=590.48.01  nvml=13.590.48.01  cuda=13010
 *   0.uuid=GPU-…  0.name=…  0.gpu_util=95  …       what GPU 0 answers; what has no line is NOT_SUPPORTED
 *   0.processes=1234:1073741824,99:0               pid:bytes ("?" for bytes: not available)
 *   0.mig=1  0.mig.0.name=…  0.mig.0.id=7          MIG devices
 *   0.field.82=55                                  a field value; 0.field.82.return=3 its own return code
 *   return.nvmlDeviceGetUUID=15                    the return code of a function, of all GPUs
 *   return.nvmlDeviceGetUUID@1=15                  of GPU 1 alone
 *   slow.NAME[@GPU]=250                            milliseconds before it answers
 *   hang.NAME[@GPU]=PATH                           it writes into PATH first, which lies on a frozen file system
 *   hang.NAME[@GPU]=-                              it waits until this line is gone
 *   event=1:79:42                                  GPU, Xid and a serial number: told once for each serial number
 * Each call is appended to $NVML_STUB_CALLS where that is set.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10 };
enum { MOST_GPUS = 16, MOST_MIG = 8, MIG_BASE = 1000 };

typedef struct device { int number; } device; /* a GPU, or MIG_BASE + 10 * GPU + instance */
static device devices[MIG_BASE + 10 * MOST_GPUS + MOST_MIG];

static device *handle(int number) {
    devices[number].number = number;
    return &devices[number];
}

static void pause_ms(long ms) {
    struct timespec span = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&span, NULL);
}

static int look(char *out, size_t size, const char *format, ...) {
    char key[160], line[4096];
    int found = 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    FILE *file = fopen(getenv("NVML_STUB_STATE"), "re");
    if (!file) return 0;
    size_t length = strlen(key);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == '=') {
            line[strcspn(line, "\n")] = 0;
            snprintf(out, size, "%s", line + length + 1);
            found = 1;
        }
    fclose(file);
    return found;
}

/* slow., hang. or return. of a function, of one GPU before that of all */
static int mode(char *out, size_t size, const char *kind, const char *name, int gpu) {
    return (gpu >= 0 && look(out, size, "%s.%s@%d", kind, name, gpu)) || look(out, size, "%s.%s", kind, name);
}

static int enter(const char *name, int gpu) {
    char text[1024];
    const char *calls = getenv("NVML_STUB_CALLS");
    if (calls) {
        int fd = open(calls, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
        dprintf(fd, "%s %d\n", name, gpu);
        close(fd);
    }
    if (mode(text, sizeof text, "slow", name, gpu)) pause_ms(atol(text));
    if (mode(text, sizeof text, "hang", name, gpu)) {
        if (strcmp(text, "-")) {
            int fd = open(text, O_WRONLY | O_CLOEXEC);
            if (fd >= 0 && write(fd, "x", 1) < 0) abort();
            close(fd);
        } else
            while (mode(text, sizeof text, "hang", name, gpu)) pause_ms(20);
    }
    return mode(text, sizeof text, "return", name, gpu) ? atoi(text) : SUCCESS;
}

static int number(int gpu, const char *key, unsigned long long *value) {
    char text[256];
    if (!look(text, sizeof text, "%d.%s", gpu, key)) return NOT_SUPPORTED;
    *value = strtoull(text, NULL, 0);
    return SUCCESS;
}

static int unsigned_of(const char *name, device *gpu, const char *key, unsigned *value) {
    unsigned long long found;
    int code = enter(name, gpu->number);
    if (!code) code = number(gpu->number, key, &found);
    if (!code) *value = (unsigned)found;
    return code;
}

static int wide_of(const char *name, device *gpu, const char *key, unsigned long long *value) {
    int code = enter(name, gpu->number);
    return code ? code : number(gpu->number, key, value);
}

static int text_of(const char *name, int gpu, const char *key, char *out, unsigned size) {
    int code = enter(name, gpu);
    if (code) return code;
    return (gpu < 0 ? look(out, size, "%s", key) : look(out, size, "%d.%s", gpu, key)) ? SUCCESS : NOT_SUPPORTED;
}

/* -- the session -- */

int nvmlInitWithFlags(unsigned flags) { return enter("nvmlInitWithFlags", -1); }
int nvmlShutdown(void) { return enter("nvmlShutdown", -1); }
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    return text_of("nvmlSystemGetDriverVersion", -1, "driver", out, size);
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    return text_of("nvmlSystemGetNVMLVersion", -1, "nvml", out, size);
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    char text[32];
    int code = enter("nvmlSystemGetCudaDriverVersion_v2", -1);
    if (!code && !look(text, sizeof text, "cuda")) code = NOT_SUPPORTED;
    if (!code) *out = atoi(text);
    return code;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    char text[32];
    int code = enter("nvmlDeviceGetCount_v2", -1);
    if (!code) *out = look(text, sizeof text, "count") ? (unsigned)atoi(text) : 0;
    return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    int code = enter("nvmlDeviceGetHandleByIndex_v2", (int)index);
    if (!code) *out = handle((int)index);
    return code;
}
int nvmlDeviceGetUUID(device *gpu, char *out, unsigned size) {
    return text_of("nvmlDeviceGetUUID", gpu->number, "uuid", out, size);
}
int nvmlDeviceGetName(device *gpu, char *out, unsigned size) {
    char key[32] = "name";
    int owner = gpu->number;
    if (owner >= MIG_BASE) {
        snprintf(key, sizeof key, "mig.%d.name", owner % 10);
        owner = (owner - MIG_BASE) / 10;
    }
    return text_of("nvmlDeviceGetName", owner, key, out, size);
}
int nvmlDeviceGetMinorNumber(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetMinorNumber", gpu, "minor", out);
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(device *gpu, struct pci *out) {
    char text[32];
    int code = enter("nvmlDeviceGetPciInfo_v3", gpu->number);
    if (code) return code;
    if (!look(text, sizeof text, "%d.pci", gpu->number)) return NOT_SUPPORTED;
    return sscanf(text, "%x:%x:%x", &out->domain, &out->bus, &out->device) == 3 ? SUCCESS : INVALID;
}

/* -- one GPU -- */

struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(device *gpu, struct utilization *out) {
    int code = unsigned_of("nvmlDeviceGetUtilizationRates", gpu, "gpu_util", &out->gpu);
    unsigned long long memory = 0;
    if (!code) number(gpu->number, "mem_util", &memory);
    out->memory = (unsigned)memory;
    return code;
}
int nvmlDeviceGetEncoderUtilization(device *gpu, unsigned *out, unsigned *period) {
    *period = 1000;
    return unsigned_of("nvmlDeviceGetEncoderUtilization", gpu, "enc_util", out);
}
int nvmlDeviceGetDecoderUtilization(device *gpu, unsigned *out, unsigned *period) {
    *period = 1000;
    return unsigned_of("nvmlDeviceGetDecoderUtilization", gpu, "dec_util", out);
}
int nvmlDeviceGetTemperature(device *gpu, int sensor, unsigned *out) {
    return unsigned_of("nvmlDeviceGetTemperature", gpu, "temperature", out);
}
int nvmlDeviceGetTemperatureThreshold(device *gpu, int kind, unsigned *out) {
    char key[32];
    snprintf(key, sizeof key, "threshold.%d", kind);
    return unsigned_of("nvmlDeviceGetTemperatureThreshold", gpu, key, out);
}
int nvmlDeviceGetPowerUsage(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetPowerUsage", gpu, "power", out);
}
int nvmlDeviceGetEnforcedPowerLimit(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetEnforcedPowerLimit", gpu, "power_limit", out);
}
int nvmlDeviceGetClockInfo(device *gpu, int kind, unsigned *out) {
    return unsigned_of("nvmlDeviceGetClockInfo", gpu, kind == 1 ? "sm_clock" : "mem_clock", out);
}
int nvmlDeviceGetPerformanceState(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetPerformanceState", gpu, "pstate", out);
}
int nvmlDeviceGetCurrentClocksEventReasons(device *gpu, unsigned long long *out) {
    return wide_of("nvmlDeviceGetCurrentClocksEventReasons", gpu, "reasons", out);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device *gpu, unsigned long long *out) {
    return wide_of("nvmlDeviceGetCurrentClocksThrottleReasons", gpu, "reasons", out);
}
int nvmlDeviceGetCurrPcieLinkGeneration(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetCurrPcieLinkGeneration", gpu, "pcie_gen", out);
}
int nvmlDeviceGetCurrPcieLinkWidth(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetCurrPcieLinkWidth", gpu, "pcie_width", out);
}
int nvmlDeviceGetMaxPcieLinkGeneration(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetMaxPcieLinkGeneration", gpu, "pcie_gen_max", out);
}
int nvmlDeviceGetMaxPcieLinkWidth(device *gpu, unsigned *out) {
    return unsigned_of("nvmlDeviceGetMaxPcieLinkWidth", gpu, "pcie_width_max", out);
}
int nvmlDeviceGetNvLinkState(device *gpu, unsigned link, unsigned *out) {
    char key[32];
    snprintf(key, sizeof key, "nvlink.%u", link);
    return unsigned_of("nvmlDeviceGetNvLinkState", gpu, key, out);
}

struct violation { unsigned long long reference, time; };
int nvmlDeviceGetViolationStatus(device *gpu, int policy, struct violation *out) {
    char key[32];
    snprintf(key, sizeof key, "violation.%d", policy);
    return wide_of("nvmlDeviceGetViolationStatus", gpu, key, &out->time);
}

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo(device *gpu, struct memory *out) {
    int code = enter("nvmlDeviceGetMemoryInfo", gpu->number), owner = gpu->number;
    char used[32] = "memory_used", free[32] = "memory_free";
    if (code) return code;
    if (owner >= MIG_BASE) {
        snprintf(used, sizeof used, "mig.%d.memory_used", owner % 10);
        snprintf(free, sizeof free, "mig.%d.memory_free", owner % 10);
        owner = (owner - MIG_BASE) / 10;
    }
    if ((code = number(owner, used, &out->used)) || (code = number(owner, free, &out->free))) return code;
    out->total = out->used + out->free;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(device *gpu, struct memory_v2 *out) {
    int code = enter("nvmlDeviceGetMemoryInfo_v2", gpu->number);
    if (code || (code = number(gpu->number, "memory_reserved", &out->reserved))) return code;
    if ((code = number(gpu->number, "memory_used", &out->used))) return code;
    if ((code = number(gpu->number, "memory_free", &out->free))) return code;
    out->total = out->used + out->free + out->reserved;
    return SUCCESS;
}

struct field { unsigned id, scope; long long timestamp, latency; int type, code; unsigned long long value; };
int nvmlDeviceGetFieldValues(device *gpu, int count, struct field *fields) {
    int code = enter("nvmlDeviceGetFieldValues", gpu->number);
    for (int i = 0; !code && i < count; i++) {
        char text[32], key[32];
        snprintf(key, sizeof key, "field.%u", fields[i].id);
        fields[i].type = 3; /* unsigned long long */
        fields[i].code = number(gpu->number, key, &fields[i].value);
        if (look(text, sizeof text, "%d.field.%u.return", gpu->number, fields[i].id)) fields[i].code = atoi(text);
    }
    return code;
}

/* -- processes -- */

struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
static int processes(const char *name, device *gpu, const char *key, unsigned *count, struct process *out) {
    char text[4096];
    unsigned found = 0;
    int code = enter(name, gpu->number);
    if (code) return code;
    if (gpu->number >= MIG_BASE || !look(text, sizeof text, "%d.%s", gpu->number, key)) text[0] = 0;
    for (char *rest = text, *entry; (entry = strsep(&rest, ",")) && *entry; found++) {
        char *bytes = strchr(entry, ':');
        if (!bytes || !out || found >= *count) continue;
        out[found] = (struct process){atoi(entry), bytes[1] == '?' ? UINT64_MAX : strtoull(bytes + 1, NULL, 0), -1u, -1u};
    }
    code = found && (!out || found > *count) ? TOO_SMALL : SUCCESS;
    *count = found;
    return code;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device *gpu, unsigned *count, struct process *out) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", gpu, "processes", count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device *gpu, unsigned *count, struct process *out) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", gpu, "graphics", count, out);
}

/* -- MIG -- */

int nvmlDeviceGetMigMode(device *gpu, unsigned *current, unsigned *pending) {
    int code = unsigned_of("nvmlDeviceGetMigMode", gpu, "mig", current);
    *pending = *current;
    return code;
}
int nvmlDeviceGetMaxMigDeviceCount(device *gpu, unsigned *out) {
    *out = MOST_MIG - 1;
    return enter("nvmlDeviceGetMaxMigDeviceCount", gpu->number);
}
int nvmlDeviceGetMigDeviceHandleByIndex(device *gpu, unsigned index, device **out) {
    char text[32];
    int code = enter("nvmlDeviceGetMigDeviceHandleByIndex", gpu->number);
    if (code) return code;
    if (!look(text, sizeof text, "%d.mig.%u.id", gpu->number, index)) return NOT_FOUND;
    *out = handle(MIG_BASE + 10 * gpu->number + (int)index);
    return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(device *gpu, unsigned *out) {
    char text[32];
    int owner = (gpu->number - MIG_BASE) / 10, code = enter("nvmlDeviceGetGpuInstanceId", owner);
    if (!code && !look(text, sizeof text, "%d.mig.%d.id", owner, gpu->number % 10)) code = NOT_FOUND;
    if (!code) *out = (unsigned)atoi(text);
    return code;
}

/* -- events -- */

struct event { device *gpu; unsigned long long kind, data; unsigned gpu_instance, compute_instance; };
static int told;
int nvmlEventSetCreate(void **out) {
    *out = &told;
    return enter("nvmlEventSetCreate", -1);
}
int nvmlEventSetFree(void *set) { return enter("nvmlEventSetFree", -1); }
int nvmlDeviceGetSupportedEventTypes(device *gpu, unsigned long long *out) {
    *out = 8; /* critical Xid errors */
    return enter("nvmlDeviceGetSupportedEventTypes", gpu->number);
}
int nvmlDeviceRegisterEvents(device *gpu, unsigned long long kinds, void *set) {
    return enter("nvmlDeviceRegisterEvents", gpu->number);
}
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms) {
    char text[64];
    int code = enter("nvmlEventSetWait_v2", -1), gpu, xid, serial;
    if (code) return code;
    unsigned step_ms = timeout_ms < 50 ? timeout_ms : 50;
    for (unsigned waited = 0; waited < timeout_ms; waited += step_ms, pause_ms(step_ms))
        if (look(text, sizeof text, "event") && sscanf(text, "%d:%d:%d", &gpu, &xid, &serial) == 3 && serial != told) {
            told = serial;
            *out = (struct event){handle(gpu), 8, (unsigned long long)xid, -1u, -1u};
            return SUCCESS;
        }
    return TIMEOUT;
}
