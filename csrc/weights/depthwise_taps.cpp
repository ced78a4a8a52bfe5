// SPDX-License-Identifier: Apache-2.0
#include "weights/depthwise_taps.h"

#include <algorithm>
#include <array>
#include <cstdlib>

namespace tops {
namespace {

// The most that two taps of one lane may weigh together: 255 * 128 < 2**15.
constexpr int kMaxLaneWeight = 128;

struct Tap {
  int32_t offset;
  std::array<int, 4> weight;  // of the packet's four channels
  int worst() const {
    int w = 0;
    for (int v : weight) w = std::max(w, std::abs(v));
    return w;
  }
};

bool fit(const Tap& a, const Tap& b) {
  for (size_t c = 0; c < 4; ++c) {
    const int x = a.weight[c], y = b.weight[c];
    if (std::max(x, 0) + std::max(y, 0) > kMaxLaneWeight) return false;
    if (std::min(x, 0) + std::min(y, 0) < -kMaxLaneWeight) return false;
  }
  return true;
}

// Taps two by two; an absent partner repeats the offset with weight 0.
std::vector<Tap> matched(std::vector<Tap> taps) {
  std::stable_sort(taps.begin(), taps.end(),
                   [](const Tap& a, const Tap& b) { return a.worst() > b.worst(); });
  std::vector<Tap> pairs;
  while (!taps.empty()) {
    const Tap first = taps.front();
    taps.erase(taps.begin());
    pairs.push_back(first);
    const auto partner =
        std::find_if(taps.begin(), taps.end(), [&](const Tap& t) { return fit(first, t); });
    if (partner == taps.end()) {
      pairs.push_back({first.offset, {0, 0, 0, 0}});
    } else {
      pairs.push_back(*partner);
      taps.erase(partner);
    }
  }
  return pairs;
}

// The taps of one packet, in the order of their numbers, with the weights of its channels. Entries
// of a split quad add up.
std::vector<Tap> taps_of(const PackedView& packed, int64_t packet,
                         const std::vector<int32_t>& offsets) {
  const int64_t taps = packed.shape.r * packed.shape.s;
  std::vector<Tap> list;
  for (int64_t t = 0; t < taps; ++t)
    list.push_back({offsets[static_cast<size_t>(packet * taps + t)], {0, 0, 0, 0}});
  for (int64_t c = 0; c < 4 && packet * 4 + c < packed.shape.o; ++c)
    for (int64_t i = packed.row_ptr[packet * 4 + c]; i < packed.row_ptr[packet * 4 + c + 1]; ++i) {
      const Entry& e = packed.entries[i];
      list[static_cast<size_t>(e.offset - packet * taps)].weight[static_cast<size_t>(c)] +=
          static_cast<int8_t>(e.weight >> (8 * c));
    }
  list.erase(std::remove_if(list.begin(), list.end(), [](const Tap& t) { return t.worst() == 0; }),
             list.end());
  return list;
}

}  // namespace

TapGroups make_tap_groups(const PackedView& packed, const std::vector<int32_t>& offsets) {
  TapGroups made;
  made.row_ptr.push_back(0);
  for (int64_t packet = 0; packet < packed.packets; ++packet) {
    std::vector<Tap> taps = matched(taps_of(packed, packet, offsets));
    while (taps.size() % 4) taps.push_back({taps.front().offset, {0, 0, 0, 0}});
    for (size_t i = 0; i < taps.size(); i += 4) {
      TapGroup g{};
      for (size_t j = 0; j < 4; ++j) {
        g.offset[j] = taps[i + j].offset;
        for (size_t c = 0; c < 4; ++c)
          g.weight[c * 4 + j] = static_cast<int8_t>(taps[i + j].weight[c]);
      }
      made.groups.push_back(g);
    }
    made.row_ptr.push_back(static_cast<int32_t>(made.groups.size()));
  }
  return made;
}

}  // namespace tops
