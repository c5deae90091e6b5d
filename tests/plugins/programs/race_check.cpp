// One call of every kernel on the simulated device, for ThreadSanitizer, which ends the program at the first race.
#include <cmath>
#include <cstdio>
#include <vector>

#include "last_token_topk.h"
#include "repulsion_select.h"

namespace {

std::vector<float> waves(int64_t count) {
  std::vector<float> all(static_cast<size_t>(count));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<float>(std::sin(static_cast<double>(i * i % 1013)));
  return all;
}

void* aligned(std::vector<char>& memory) { return memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256); }

bool repulsion(sts::RepulsionSelectShape const& shape, bool anchored) {
  std::vector<float> const features = waves(shape.crops * shape.rows * shape.width);
  std::vector<int64_t> const first(static_cast<size_t>(shape.crops), 1);
  std::vector<int64_t> here(static_cast<size_t>(shape.crops * shape.steps)), there = here;
  std::vector<char> memory(sts::repulsionSelectWorkspace(shape) + 256);
  int64_t const* const anchors = anchored ? first.data() : nullptr;
  void const* const x = features.data();
  sts::repulsionSelectHost(shape, sts::DataType::kFloat, x, anchors, nullptr, 1e-6f, here.data(), aligned(memory));
  sts::repulsionSelect(shape, sts::DataType::kFloat, x, anchors, nullptr, 1e-6f, there.data(), aligned(memory), nullptr);
  return here == there;
}

bool gram(int64_t rows, int64_t steps) {
  std::vector<float> const points = waves(rows);
  std::vector<float> products;
  for (float const a : points) {
    for (float const b : points) products.push_back(a * b);
  }
  int64_t const first = rows / 2;
  sts::RepulsionSelectShape const shape{1, rows, 1, steps};
  std::vector<int64_t> here(static_cast<size_t>(steps)), there = here;
  std::vector<char> memory(sts::repulsionSelectWorkspace(shape) + 256);
  sts::repulsionSelectFromGramHost(shape, products.data(), &first, nullptr, 1e-6f, here.data(), aligned(memory));
  sts::repulsionSelectFromGram(shape, products.data(), &first, nullptr, 1e-6f, there.data(), aligned(memory), nullptr);
  return here == there;
}

bool topk(sts::LastTokenTopKShape const& shape) {
  std::vector<float> const query = waves(shape.batch * shape.heads * shape.rows * shape.headDim);
  std::vector<int64_t> mask(static_cast<size_t>(shape.batch * shape.rows), 1);
  mask[static_cast<size_t>(shape.rows - 1)] = 0;
  std::vector<char> visual(mask.size());
  for (size_t i = 0; i < visual.size(); ++i) visual[i] = static_cast<int64_t>(i) % shape.rows < shape.visual;
  auto const* const seen = reinterpret_cast<bool const*>(visual.data());
  std::vector<int64_t> here(static_cast<size_t>(shape.batch * (shape.rows - shape.visual + shape.visualKeep))), there = here;
  std::vector<int64_t> last(static_cast<size_t>(shape.batch));
  std::vector<char> memory(sts::lastTokenTopKWorkspace(shape) + 256);
  void const* const x = query.data();
  sts::lastTokenTopKHost(shape, sts::DataType::kFloat, x, x, mask.data(), seen, 0.5f, here.data(), last.data(), aligned(memory));
  sts::lastTokenTopK(shape, sts::DataType::kFloat, x, x, mask.data(), seen, 0.5f, there.data(), last.data(), aligned(memory), nullptr);
  return here == there;
}

}  // namespace

int main() {
  bool const right = repulsion({1, 40, 70, 4}, true) && repulsion({1, 5, 9, 2}, false) && gram(1030, 3) && topk({1, 2, 1, 40, 8, 30, 7});
  std::puts(right ? "done" : "other results than on the host");
  return right ? 0 : 1;
}
