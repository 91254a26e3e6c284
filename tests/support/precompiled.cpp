// SPDX-License-Identifier: MIT

// Nothing: the target attend_precompiled needs a file, and is there for its precompiled header.
