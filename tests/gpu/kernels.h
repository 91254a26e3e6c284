// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>

#include <memory>

namespace attend::test {

/// attend::cuda::backend() for calls without structs.
std::shared_ptr<const attend::detail::AttentionBackend> plain_kernels();
/// The same for DeviceScore and DeviceMask (support/device_cases.h).
std::shared_ptr<const attend::detail::AttentionBackend> kernels_of_structs();

}  // namespace attend::test
