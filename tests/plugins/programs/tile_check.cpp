// Stage 1's matrix by wide and by narrow tiles, on the host and on the simulated device: the same bits.  And which tile is chosen.
//
//   tile_check                                  prints "done", or what differs
//   tile_check CROPS ROWS MULTIPROCESSORS       prints the tile's rows
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "matrix/tile_size.h"
#include "workspace.h"

namespace {

struct Memory {
  explicit Memory(size_t size) : bytes(size + 256) {}
  void* aligned() { return bytes.data() + (256 - reinterpret_cast<uintptr_t>(bytes.data()) % 256); }

  std::vector<char> bytes;
};

template <class T>
T rounded(float value);
template <>
float rounded<float>(float value) {
  return value;
}
template <>
sts::Half rounded<sts::Half>(float value) {  // in -2 .. 2, towards 0
  uint32_t const bits = sts::bitsOf(value);
  return {static_cast<uint16_t>(std::fabs(value) < 1e-4f ? 0 : (bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - (112u << 23)) >> 13)};
}
template <>
sts::Bfloat16 rounded<sts::Bfloat16>(float value) {
  return {static_cast<uint16_t>(sts::bitsOf(value) >> 16)};
}

template <class T>
std::vector<float> narrowOnHost(sts::Features<T> const& x, int64_t crops, float epsilon) {
  std::vector<float> matrix(static_cast<size_t>(crops * x.rows * x.rows));
  sts::SerialGroup group;
  sts::TileShared<sts::NarrowTile> shared;
  for (int64_t crop = 0; crop < crops; ++crop) {
    for (int64_t i = 0; i < sts::tilesOf(x.rows, sts::NarrowTile::kRows); ++i)
      sts::tileBody<sts::NarrowTile>(group, shared, x, crop, sts::TileIndex::of(i), epsilon, matrix.data() + crop * x.rows * x.rows);
  }
  return matrix;
}

template <class T>
bool same(sts::DataType type, sts::RepulsionSelectShape const& shape) {
  std::vector<T> features;
  for (int64_t i = 0; i < shape.crops * shape.rows * shape.width; ++i)
    features.push_back(rounded<T>(static_cast<float>(std::sin(static_cast<double>(i * i % 1013)))));
  float const epsilon = 1e-6f;
  std::vector<int64_t> const first(static_cast<size_t>(shape.crops), shape.rows / 2);
  std::vector<int64_t> expected(static_cast<size_t>(shape.crops * shape.steps));
  size_t const bytes = static_cast<size_t>(shape.crops * shape.rows * shape.rows) * sizeof(float);
  Memory memory(sts::repulsionSelectWorkspace(shape));
  sts::repulsionSelectHost(shape, type, features.data(), first.data(), nullptr, epsilon, expected.data(), memory.aligned());
  float const* const found = sts::RepulsionParts(shape, memory.aligned()).repulsions;
  sts::Features<T> const x{features.data(), shape.rows, shape.width, sts::vectorsAligned<T>(features.data(), shape.width)};
  std::vector<float> const matrix(found, found + bytes / sizeof(float)), narrow = narrowOnHost(x, shape.crops, epsilon);
  bool right = std::memcmp(matrix.data(), narrow.data(), bytes) == 0;
  for (sts::LaunchOptions const& launching : {sts::LaunchOptions{24, true}, {32, true}, {24, false}, {32, false}, {}}) {
    std::memset(memory.bytes.data(), 0, memory.bytes.size());
    std::vector<int64_t> chosen(expected.size(), -1);
    right &= sts::repulsionSelect(shape, type, features.data(), first.data(), nullptr, epsilon, chosen.data(), memory.aligned(), nullptr,
                                  launching) == sts::Status::kOk;
    right &= chosen == expected && std::memcmp(matrix.data(), found, bytes) == 0;
  }
  if (!right) std::printf("type %d, %d rows of %d differ\n", static_cast<int>(type), static_cast<int>(shape.rows), static_cast<int>(shape.width));
  return right;
}

template <class T>
bool allSame(sts::DataType type) {
  bool right = true;
  for (int64_t const rows : {1, 24, 25, 32, 33, 73}) right &= same<T>(type, {1, rows, 7, (rows + 1) / 2});
  for (int64_t const width : {1, 64, 72, 131}) right &= same<T>(type, {2, 50, width, 5});
  return right;
}

bool otherTilesAreRefused() {
  float const features[4] = {};
  int64_t first = 0, chosen = -1;
  Memory memory(sts::repulsionSelectWorkspace({1, 4, 1, 1}));
  bool const refused = sts::repulsionSelect({1, 4, 1, 1}, sts::DataType::kFloat, features, &first, nullptr, 1.0f, &chosen, memory.aligned(), nullptr,
                                            {16, true}) == sts::Status::kInvalid;
  if (!refused) std::puts("tiles of 16 rows are not refused");
  return refused && chosen == -1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 4) {
    std::printf("%d\n", static_cast<int>(sts::chooseTile(std::atoll(arguments[1]), std::atoll(arguments[2]), std::atoll(arguments[3]))));
    return 0;
  }
  bool right = otherTilesAreRefused();
  right &= allSame<float>(sts::DataType::kFloat);
  right &= allSame<sts::Half>(sts::DataType::kHalf);
  right &= allSame<sts::Bfloat16>(sts::DataType::kBfloat16);
  if (right) std::puts("done");
  return right ? 0 : 1;
}
