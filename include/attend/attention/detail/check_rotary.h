// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/options.h>
#include <attend/attention/rotary_tables.h>
#include <attend/detail/torch/check_dense.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Checks the tables for `rows` queries or keys. `row_name` is L or S.
inline void check_rotary_tables(const char* name, const RotaryTables& tables, const char* row_name, std::int64_t rows,
                                const Problem& problem) {
  TORCH_CHECK_VALUE(tables.cos.defined() && tables.sin.defined(), "attend::attention: ", name,
                    " must have both cos and sin");
  const at::Tensor &cos = tables.cos, &sin = tables.sin, &query = problem.query;
  for (const at::Tensor& table : {cos, sin}) {
    check_dense("attend::attention", name, table);
    TORCH_CHECK_TYPE(table.is_floating_point(), "attend::attention: the tables of ", name, " (", table.scalar_type(),
                     ") must have a floating dtype");
    TORCH_CHECK_VALUE(table.device() == query.device(), "attend::attention: the tables of ", name, " (", table.device(),
                      ") must be on the device of query (", query.device(), ")");
  }
  TORCH_CHECK_VALUE(cos.sizes() == sin.sizes(), "attend::attention: cos ", cos.sizes(), " and sin ", sin.sizes(),
                    " of ", name, " must have the same sizes");
  const std::int64_t dim = cos.dim(), N = problem.batch_size();
  const bool has_rows = (dim == 2 || (dim == 3 && (cos.size(0) == N || cos.size(0) == 1))) && cos.size(-2) == rows;
  TORCH_CHECK_VALUE(has_rows, "attend::attention: the tables of ", name, " must be (", row_name, ", R/2) or (N, ",
                    row_name, ", R/2), with N = ", N, " and ", row_name, " = ", rows, ", got ", cos.sizes());
  TORCH_CHECK_VALUE(cos.size(-1) >= 1 && 2 * cos.size(-1) <= problem.head_dim(), "attend::attention: the tables of ",
                    name, " must have from 1 to D/2 columns, with D = ", problem.head_dim(), ", got ", cos.sizes());
}

/// The tables of the queries: the option query_rotary, or else the last L rows of the option rotary.
inline RotaryTables query_tables(const AttentionOptions& options, const Problem& problem) {
  const RotaryTables& of_keys = options.rotary();
  if (options.query_rotary().cos.defined() || options.query_rotary().sin.defined()) {
    const RotaryTables& given = options.query_rotary();
    check_rotary_tables("query_rotary", given, "L", problem.query_length(), problem);
    TORCH_CHECK_VALUE(given.cos.size(-1) == of_keys.cos.size(-1), "attend::attention: query_rotary ", given.cos.sizes(),
                      " must have as many columns as rotary ", of_keys.cos.sizes());
    TORCH_CHECK_VALUE(given.layout == of_keys.layout, "attend::attention: query_rotary (", given.layout,
                      ") must have the layout of rotary (", of_keys.layout, ")");
    return given;
  }
  const std::int64_t L = problem.query_length(), first = problem.key_length() - L;
  TORCH_CHECK_VALUE(first >= 0 && !problem.is_packed() && !problem.key_lengths.defined(),
                    "attend::attention: query_rotary must be given with L > S, in a packed batch and with key_lengths; "
                    "L = ",
                    L, " and S = ", problem.key_length());
  return {of_keys.cos.narrow(-2, first, L), of_keys.sin.narrow(-2, first, L), of_keys.layout};
}

/// A table as (1 or N, rows, R/2).
inline at::Tensor table_of_batch(const at::Tensor& table) { return table.dim() == 2 ? table.unsqueeze(0) : table; }

/// Checks the options rotary and query_rotary, and sets the tables of the problem. All other tensors must be set.
inline void set_rotary(const AttentionOptions& options, Problem& problem) {
  const RotaryTables &of_keys = options.rotary(), &of_queries = options.query_rotary();
  if (!of_keys.cos.defined() && !of_keys.sin.defined()) {
    TORCH_CHECK_VALUE(!of_queries.cos.defined() && !of_queries.sin.defined(),
                      "attend::attention: query_rotary needs the option rotary");
    return;
  }
  TORCH_CHECK_VALUE(!problem.has_pages(),
                    "attend::attention: rotary cannot be combined with block_table; append rotated keys to the pages");
  check_rotary_tables("rotary", of_keys, "S", problem.key_length(), problem);
  const RotaryTables queries = query_tables(options, problem);
  problem.rotary_layout = of_keys.layout;
  problem.query_cos = table_of_batch(queries.cos);
  problem.query_sin = table_of_batch(queries.sin);
  problem.key_cos = table_of_batch(of_keys.cos);
  problem.key_sin = table_of_batch(of_keys.sin);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
