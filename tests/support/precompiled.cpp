// SPDX-License-Identifier: MIT

// Empty on purpose: the target attend_precompiled needs a source file, and only its precompiled header is used.
