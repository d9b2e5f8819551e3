// An Ascend without an Ascend: two devices called npu, whose memory is the host's and which have no
// kernels, so that Paddle runs each operator's CPU kernel between a copy from and a copy to them.
// Built by fake_npu.py. Everything else is Paddle's header's, with collectives that do nothing.
// It stands for PaddleCustomDevice's backends/npu/runtime/runtime.cc (commit 0403c68), as far as
// Paddle's device manager sees that. Where CANN or HCCL refuses a call, that one ends the process
// with exit(-1), out of memory included; this one never does.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "paddle/phi/backends/custom/fake_cpu_device.h"

namespace {

constexpr size_t kDevices = 2;
constexpr size_t kMemory = size_t(8) << 30;  // the header has 1 MB, less than one batch

thread_local size_t current = 0;

C_Status Select(const C_Device device) { return current = device->id, C_SUCCESS; }
C_Status Selected(const C_Device device) { return device->id = current, C_SUCCESS; }
C_Status Count(size_t *count) { return *count = kDevices, C_SUCCESS; }

C_Status List(size_t *devices) {
  for (size_t i = 0; i < kDevices; ++i) devices[i] = i;
  return C_SUCCESS;
}

C_Status Give(const C_Device, void **memory, size_t size) {
  return (*memory = std::malloc(size)) ? C_SUCCESS : C_FAILED;
}

C_Status Take(const C_Device, void *memory, size_t) { return std::free(memory), C_SUCCESS; }

C_Status Memory(const C_Device, size_t *total, size_t *unused) {
  return *total = *unused = kMemory, C_SUCCESS;
}

C_Status Chunk(const C_Device, size_t *size) { return *size = size_t(64) << 20, C_SUCCESS; }
C_Status Largest(const C_Device, size_t *size) { return *size = kMemory / 2, C_SUCCESS; }

// What the tests go by: a device that nothing was copied to has computed nothing.
void Tell(const C_Device device) {
  static bool told[kDevices];
  if (!told[device->id]) std::fprintf(stderr, "fake npu: device %d is used\n", device->id);
  told[device->id] = true;
}

C_Status Copy(const C_Device device, void *to, const void *from, size_t size) {
  Tell(device);
  std::memcpy(to, from, size);
  return C_SUCCESS;
}

C_Status CopyLater(const C_Device device, C_Stream, void *to, const void *from, size_t size) {
  return Copy(device, to, from, size);
}

}  // namespace

extern "C" void InitPlugin(CustomRuntimeParams *params) {
  InitFakeCPUDevice(params);
  params->device_type = const_cast<char *>("npu");
  C_DeviceInterface *device = params->interface;
  device->init_device = device->set_device = Select;
  device->get_device = Selected;
  device->get_device_count = Count;
  device->get_device_list = List;
  device->device_memory_allocate = device->host_memory_allocate = Give;
  device->unified_memory_allocate = Give;
  device->device_memory_deallocate = device->host_memory_deallocate = Take;
  device->unified_memory_deallocate = Take;
  device->device_memory_stats = Memory;
  device->device_max_chunk_size = Chunk;
  device->device_max_alloc_size = Largest;
  device->memory_copy_h2d = Copy;
  device->async_memory_copy_h2d = CopyLater;
#if PADDLE_MAJOR > 2  // the header names an optimisation of graphs that nobody has written
  static std::vector<std::string> none;
  params->pir_default_passes = &none;
#endif
}
