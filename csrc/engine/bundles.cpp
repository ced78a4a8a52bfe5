// SPDX-License-Identifier: Apache-2.0
#include "engine/bundles.h"

#include <algorithm>
#include <cstring>

namespace tops {
namespace {

constexpr int kMost = 128;  // sum of the weights of one sign in one lane: 255 * 128 < 2**15
// Bundles that wait for one more entry. More of them fill better and take longer to search.
constexpr size_t kOpen = 12;

// What entries add to the two 16-bit lanes of a quad, by sign.
struct Load {
  int up[2] = {0, 0}, down[2] = {0, 0};
  static Load of(int32_t quad) {
    int8_t w[4];
    std::memcpy(w, &quad, 4);
    Load load;
    for (int i = 0; i < 4; ++i) {
      load.up[i / 2] += std::max<int>(w[i], 0);
      load.down[i / 2] += std::max<int>(-w[i], 0);
    }
    return load;
  }
  int worst() const { return std::max(std::max(up[0], up[1]), std::max(down[0], down[1])); }
  Load plus(const Load& other) const {
    Load sum = *this;
    for (int i = 0; i < 2; ++i) {
      sum.up[i] += other.up[i];
      sum.down[i] += other.down[i];
    }
    return sum;
  }
};

struct Bundle {
  Load load;
  int size = 0;
  Entry entries[kMostBundle];
  void add(const Entry& e, const Load& more) {
    entries[size++] = e;
    load = load.plus(more);
  }
};

struct Item {
  Entry entry;
  Load load;
};

void push_halves(const Entry& e, std::vector<Item>* to) {
  int8_t w[4], half[4];
  std::memcpy(w, &e.weight, 4);
  for (int i = 0; i < 4; ++i) {
    half[i] = static_cast<int8_t>(w[i] / 2);
    w[i] = static_cast<int8_t>(w[i] - half[i]);
  }
  Entry a = e, b = e;
  std::memcpy(&a.weight, half, 4);
  std::memcpy(&b.weight, w, 4);
  to->push_back({a, Load::of(a.weight)});
  to->push_back({b, Load::of(b.weight)});
}

}  // namespace

void bundle_entries(size_t begin, std::vector<Entry>* entries, std::vector<int32_t>* counts) {
  std::vector<Item> items;
  for (size_t i = begin; i < entries->size(); ++i) {
    const Entry& e = (*entries)[i];
    const Load load = Load::of(e.weight);
    if (load.worst() <= kMost)
      items.push_back({e, load});
    else
      push_halves(e, &items);
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.load.worst() > b.load.worst(); });
  std::vector<Bundle> open, closed[kMostBundle + 1];
  auto close = [&](size_t i) {
    closed[open[i].size].push_back(open[i]);
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
  };
  // Large entries open bundles, small ones fill them.
  for (const Item& item : items) {
    size_t i = 0;
    while (i < open.size() && open[i].load.plus(item.load).worst() > kMost) ++i;
    if (i == open.size()) {
      if (open.size() == kOpen) {
        close(0);
        --i;
      }
      open.emplace_back();
    }
    open[i].add(item.entry, item.load);
    if (open[i].size == kMostBundle) close(i);
  }
  while (!open.empty()) close(0);
  entries->resize(begin);
  for (int size = kMostBundle; size > 0; --size) {
    counts->push_back(static_cast<int32_t>(closed[size].size()));
    for (const Bundle& b : closed[size])
      entries->insert(entries->end(), b.entries, b.entries + size);
  }
}

}  // namespace tops
