// What every launcher of the CUDA backend does around its kernels.
#pragma once

#include <cuda_runtime.h>

#include "backend.h"

namespace tacfast::cuda {

// Makes a device current for the life of this object.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        cudaGetDevice(&before);
        if (device != before) cudaSetDevice(device);
    }
    ~DeviceGuard() { cudaSetDevice(before); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before = 0;
};

// What the launch just before it left, by the name of its kernel; clears an error that the context survives.
inline Fault check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? Fault{} : Fault{kernel, static_cast<int>(error), cudaGetErrorString(error)};
}

inline cudaStream_t stream_of(Queue queue) { return static_cast<cudaStream_t>(queue.stream); }

}  // namespace tacfast::cuda
