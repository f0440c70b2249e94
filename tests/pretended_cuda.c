/* The CUDA runtime and driver of one H100 that is not there, preloaded in place of the real ones.
 *
 * Its memory is the host's, copies copy, and streams and events hold nothing. Calls that make the
 * host wait for the device are counted. A kernel cannot run: launching one is an error.
 */

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 4096 };
static const size_t total_memory = 80ull << 30; /* what the device says */
static const size_t arena_size = 4ull << 30;    /* what there is, of each kind */

struct arena {
    char *start;
    size_t used;
};
static struct arena device_memory, pinned_memory;
static __thread cudaError_t last_error;

int pretended_waits; /* how often the host waited; the tests read it */

static cudaError_t wait_for_device(void) {
    __atomic_add_fetch(&pretended_waits, 1, __ATOMIC_RELAXED);
    return cudaSuccess;
}

__attribute__((constructor)) static void reserve(void) {
    struct arena *arenas[] = {&device_memory, &pinned_memory};
    for (int i = 0; i < 2; i++)
        arenas[i]->start = mmap(NULL, arena_size, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Nothing is ever freed. */
static cudaError_t allocate(struct arena *arena, void **pointer, size_t bytes) {
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t offset = __atomic_fetch_add(&arena->used, rounded, __ATOMIC_RELAXED);
    if (arena->start == MAP_FAILED || offset + rounded > arena_size)
        return cudaErrorMemoryAllocation;
    *pointer = arena->start + offset;
    return cudaSuccess;
}

static int holds(const struct arena *arena, const void *pointer) {
    const char *address = pointer;
    return address >= arena->start && address < arena->start + arena_size;
}

/* The device */

cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return wait_for_device(); }
cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    return last_error = cudaSuccess, error;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    return *value = 0, cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    return *can = 0, cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    return *available = *total = total_memory, cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *device, int number) {
    memset(device, 0, sizeof *device);
    strcpy(device->name, "NVIDIA H100 (pretended)");
    device->totalGlobalMem = total_memory;
    device->major = 9;
    device->multiProcessorCount = 132;
    device->warpSize = 32;
    device->maxThreadsPerBlock = 1024;
    device->maxThreadsPerMultiProcessor = 2048;
    device->regsPerBlock = device->regsPerMultiprocessor = 65536;
    device->sharedMemPerBlock = 48 << 10;
    device->sharedMemPerBlockOptin = 227 << 10;
    device->sharedMemPerMultiprocessor = 228 << 10;
    device->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    return *flags = 0, *active = 1, CUDA_SUCCESS;
}

/* Memory */

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    return allocate(&device_memory, pointer, bytes);
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    return allocate(&pinned_memory, pointer, bytes);
}

cudaError_t cudaFree(void *pointer) { return cudaSuccess; }
cudaError_t cudaFreeHost(void *pointer) { return cudaSuccess; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    found->type = holds(&device_memory, pointer)   ? cudaMemoryTypeDevice
                  : holds(&pinned_memory, pointer) ? cudaMemoryTypeHost
                                                   : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return memcpy(to, from, bytes), cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    return memcpy(to, from, bytes), wait_for_device();
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return memset(to, value, bytes), cudaSuccess;
}

/* Kernels: by <<<>>> as nvcc 13 writes it, and before, and by hand */

static cudaError_t refuse(void) { return last_error = cudaErrorNotSupported; }

cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return refuse();
}

cudaError_t cudaLaunchKernel(
    const void *kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return refuse();
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **args) {
    return refuse();
}

/* Streams and events */

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return allocate(&pinned_memory, (void **)stream, 1);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
    size_t *num_nodes) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for_device(); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return allocate(&pinned_memory, (void **)event, 1);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaSuccess; }

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for_device(); }
