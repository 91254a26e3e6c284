// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>

namespace attend::test {

/// attend::cuda::backend() for calls without structs.
attend::BackendChoice plain_kernels();
/// The same for DeviceScore and DeviceMask (support/device_cases.h).
attend::BackendChoice kernels_of_structs();

}  // namespace attend::test
