// What the CUDA runtime finds on this machine.
#include <cuda_runtime_api.h>

#include "backend.h"

namespace tacfast::cuda {

DeviceReport devices() {
    DeviceReport report;
    // Without a driver the runtime returns an error and leaves its argument alone.
    report.error = static_cast<int>(cudaGetDeviceCount(&report.count));
    if (report.error != static_cast<int>(cudaSuccess)) {
        report.count = 0;
        report.message = cudaGetErrorString(static_cast<cudaError_t>(report.error));
        cudaGetLastError();  // the next call shall not inherit it
    }
    cudaDriverGetVersion(&report.driver);
    cudaRuntimeGetVersion(&report.runtime);
    return report;
}

}  // namespace tacfast::cuda
