// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

namespace tops {

void fail(ErrorKind kind, const std::string& what, const std::string& got,
          const std::string& todo) {
  throw Error(kind, "expected " + what + ", got " + got + ";\n  " + todo);
}

}  // namespace tops
