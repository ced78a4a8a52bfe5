// SPDX-License-Identifier: Apache-2.0
#include "weights/overflow_groups.h"

#include <algorithm>
#include <cstring>

namespace tops {
namespace {

constexpr int kMost = 128;  // sum of the weights of one sign in one lane: 255 * 128 < 2**15
// Groups that wait for one more entry. More of them fill better and take longer to search.
constexpr size_t kOpen = 12;

int quads_of(const Entry&) { return 1; }
int quads_of(const PairEntry&) { return 2; }
int32_t& quad(Entry& e, int) { return e.weight; }
int32_t& quad(PairEntry& e, int i) { return e.weight[i]; }

// Load of entries on the 16-bit lanes of their quads (two each), by sign.
struct Load {
  int up[4] = {0, 0, 0, 0}, down[4] = {0, 0, 0, 0};
  template <class E>
  static Load of(E e) {
    Load load;
    for (int q = 0; q < quads_of(e); ++q) {
      int8_t w[4];
      std::memcpy(w, &quad(e, q), 4);
      for (int i = 0; i < 4; ++i) {
        load.up[2 * q + i / 2] += std::max<int>(w[i], 0);
        load.down[2 * q + i / 2] += std::max<int>(-w[i], 0);
      }
    }
    return load;
  }
  int worst() const {
    return std::max(*std::max_element(up, up + 4), *std::max_element(down, down + 4));
  }
  Load plus(const Load& other) const {
    Load sum = *this;
    for (int i = 0; i < 4; ++i) {
      sum.up[i] += other.up[i];
      sum.down[i] += other.down[i];
    }
    return sum;
  }
};

template <class E>
struct Item {
  E entry;
  Load load;
};

template <class E, int kSize>
struct Group {
  Load load;
  int size = 0;
  E entries[kSize];
  void add(const Item<E>& item) {
    entries[size++] = item.entry;
    load = load.plus(item.load);
  }
};

template <class E>
void push_halves(E e, std::vector<Item<E>>* to) {
  E first = e;
  for (int q = 0; q < quads_of(e); ++q) {
    int8_t w[4], half[4];
    std::memcpy(w, &quad(e, q), 4);
    for (int i = 0; i < 4; ++i) {
      half[i] = static_cast<int8_t>(w[i] / 2);
      w[i] = static_cast<int8_t>(w[i] - half[i]);
    }
    std::memcpy(&quad(first, q), half, 4);
    std::memcpy(&quad(e, q), w, 4);
  }
  to->push_back({first, Load::of(first)});
  to->push_back({e, Load::of(e)});
}

template <class E, int kSize>
void group_entries(size_t begin, std::vector<E>* entries, std::vector<int32_t>* counts) {
  std::vector<Item<E>> items;
  for (size_t i = begin; i < entries->size(); ++i) {
    const E& e = (*entries)[i];
    const Load load = Load::of(e);
    if (load.worst() <= kMost)
      items.push_back({e, load});
    else
      push_halves(e, &items);
  }
  std::stable_sort(items.begin(), items.end(), [](const Item<E>& a, const Item<E>& b) {
    return a.load.worst() > b.load.worst();
  });
  std::vector<Group<E, kSize>> open, closed[kSize + 1];
  auto close = [&](size_t i) {
    closed[open[i].size].push_back(open[i]);
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
  };
  // Large entries open groups, small ones fill them.
  for (const Item<E>& item : items) {
    size_t i = 0;
    while (i < open.size() && open[i].load.plus(item.load).worst() > kMost) ++i;
    if (i == open.size()) {
      if (open.size() == kOpen) {
        close(0);
        --i;
      }
      open.emplace_back();
    }
    open[i].add(item);
    if (open[i].size == kSize) close(i);
  }
  while (!open.empty()) close(0);
  entries->resize(begin);
  for (int size = kSize; size > 0; --size) {
    counts->push_back(static_cast<int32_t>(closed[size].size()));
    for (const auto& g : closed[size]) entries->insert(entries->end(), g.entries, g.entries + size);
  }
}

}  // namespace

void make_overflow_groups(size_t begin, std::vector<Entry>* entries, std::vector<int32_t>* counts) {
  group_entries<Entry, kOverflowGroup>(begin, entries, counts);
}

void make_overflow_groups(size_t begin, std::vector<PairEntry>* entries,
                          std::vector<int32_t>* counts) {
  group_entries<PairEntry, kPairOverflowGroup>(begin, entries, counts);
}

}  // namespace tops
