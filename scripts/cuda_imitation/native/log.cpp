#include "log.h"

#include <cstdlib>
#include <mutex>
#include <vector>

namespace imitation {
namespace {

struct Event {
  int32_t kind;
  const char* name;
  uint64_t bytes;
};

struct Log {
  std::mutex mutex;
  std::vector<Event> events;
};

// Never destroyed: libraries are used until the process ends.
Log& theLog() {
  static Log* log = new Log;
  return *log;
}

}  // namespace

void record(Kind kind, const char* name, size_t bytes) {
  Log& log = theLog();
  std::lock_guard<std::mutex> lock(log.mutex);
  log.events.push_back({kind, name, bytes});
}

void* newHandle() { return std::calloc(1, 64); }

}  // namespace imitation

STS_EXPORTED void imitation_reset() {
  auto& log = imitation::theLog();
  std::lock_guard<std::mutex> lock(log.mutex);
  log.events.clear();
}

STS_EXPORTED uint64_t imitation_size() {
  auto& log = imitation::theLog();
  std::lock_guard<std::mutex> lock(log.mutex);
  return log.events.size();
}

STS_EXPORTED void imitation_event(uint64_t index, int32_t* kind, const char** name, uint64_t* bytes) {
  auto& log = imitation::theLog();
  std::lock_guard<std::mutex> lock(log.mutex);
  const imitation::Event& event = log.events.at(index);
  *kind = event.kind;
  *name = event.name;
  *bytes = event.bytes;
}
