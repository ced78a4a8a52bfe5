// SPDX-License-Identifier: Apache-2.0
#include "weights/blob.h"

#include <string>

#include "base/error.h"

namespace tops {

void bad_blob(const char* what) {
  fail(ErrorKind::kBadWeights, "packed weights as prepack makes them",
       std::string("other bytes: ") + what,
       "Make them with prepack in this version of ternary_ops.");
}

const int64_t* BlobReader::take_row_ptr(int64_t rows, int64_t entry_bytes) {
  const int64_t* const row_ptr = take<int64_t>(rows + 1);
  if (row_ptr[0] != 0) bad_blob("first row");
  for (int64_t i = 0; i < rows; ++i)
    if (row_ptr[i + 1] < row_ptr[i] || row_ptr[i + 1] > left() / entry_bytes) bad_blob("row order");
  return row_ptr;
}

}  // namespace tops
