// The scheduler behind cuda_runtime.h of this folder, and the few symbols of libtorch that only a
// CUDA build has.
#include <setjmp.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t kStack = 128 << 10;
enum class State { kReady, kAtBlockBarrier, kInWarp, kDone };

struct Thread {
  State state;
  bool begun;
  jmp_buf at;
  ucontext_t context;
};

struct Warp {
  unsigned arrived = 0;
  unsigned epoch = 1;
  int line = 0;
  Brought slots[2][kLanes];  // the set that is read, and the one that is filled
};

struct Array {
  std::unique_ptr<unsigned char[]> values;
  std::unique_ptr<Record[]> records;
};

std::vector<std::unique_ptr<unsigned char[]>> stacks;
std::vector<Thread> threads;
std::vector<Warp> warps;
std::map<const void*, Array> arrays;
const std::function<void()>* body;
jmp_buf scheduler;
int current;
unsigned block_epoch;
int barrier_line;
std::string failure;
uint64_t order_seed = 0;
uint64_t launches = 0, started = 0;
std::mt19937_64 generator;

void to_scheduler() {
  if (_setjmp(threads[current].at) == 0) _longjmp(scheduler, 1);
}

void begin() {
  (*body)();
  threads[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(int t) {
  current = t;
  threadIdx = {static_cast<unsigned>(t), 0, 0};
  if (_setjmp(scheduler) != 0) return;
  Thread& thread = threads[t];
  if (thread.begun) _longjmp(thread.at, 1);
  thread.begun = true;
  ++started;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = stacks[t].get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, begin, 0);
  setcontext(&thread.context);
}

// 0: as they are numbered; 1: from the last to the first; else shuffled.
void put_in_order(std::vector<int>& items) {
  std::sort(items.begin(), items.end());
  if (order_seed == 1) std::reverse(items.begin(), items.end());
  if (order_seed > 1) std::shuffle(items.begin(), items.end(), generator);
}

void run_block(int count) {
  arrays.clear();
  block_epoch = 1;
  warps.assign((count + kLanes - 1) / kLanes, Warp());
  for (int t = 0; t < count; ++t) {
    threads[t].state = State::kReady;
    threads[t].begun = false;
  }
  std::vector<int> ready;
  for (;;) {
    ready.clear();
    int at_barrier = 0, done = 0;
    for (int t = 0; t < count; ++t) {
      if (threads[t].state == State::kReady) ready.push_back(t);
      at_barrier += threads[t].state == State::kAtBlockBarrier;
      done += threads[t].state == State::kDone;
    }
    if (done == count) return;
    if (ready.empty()) {
      if (at_barrier == 0 || at_barrier + done != count) {
        throw std::runtime_error("threads wait for each other forever");
      }
      ++block_epoch;
      for (int t = 0; t < count; ++t) {
        if (threads[t].state == State::kAtBlockBarrier) threads[t].state = State::kReady;
      }
      barrier_line = 0;
      continue;
    }
    put_in_order(ready);
    for (const int t : ready) {
      resume(t);
      if (!failure.empty()) throw std::runtime_error(failure);
    }
  }
}

// Whether something else than the running thread did `earlier`, unordered with what it does now.
bool races(const Access& earlier) {
  if (earlier.block_epoch != block_epoch || earlier.thread == current) return false;
  if (earlier.warp != current / kLanes) return true;
  return earlier.warp_epoch == warps[current / kLanes].epoch;
}

void add(Access& access) {
  const int warp = current / kLanes;
  if (access.block_epoch != block_epoch) {
    access = {block_epoch, warps[warp].epoch, warp, current};
    return;
  }
  const bool same_warp = access.warp == warp;
  const bool same_step = same_warp && access.warp_epoch == warps[warp].epoch;
  access.thread = access.thread == current || (same_warp && !same_step) ? current : -1;
  access.warp = same_warp ? warp : -1;
  access.warp_epoch = warps[warp].epoch;
}

}  // namespace

void fail(const char* what, int line) {
  failure = std::string(what) + ", line " + std::to_string(line) + ", block " +
            std::to_string(blockIdx.x) + ", thread " + std::to_string(threadIdx.x);
  _longjmp(scheduler, 1);
}

void run(dim3 blocks, dim3 block_threads, const std::function<void()>& work) {
  const int count = static_cast<int>(block_threads.x);
  if (count < 1 || count > 1024 || count % kLanes != 0 || blocks.x < 1) {
    throw std::runtime_error("a launch needs blocks of 32 to 1024 threads in whole warps");
  }
  ++launches;
  generator.seed(order_seed);
  while (stacks.size() < static_cast<size_t>(count)) {
    stacks.emplace_back(new unsigned char[kStack]);
  }
  threads.resize(stacks.size());
  body = &work;
  gridDim = blocks;
  blockDim = block_threads;
  failure.clear();
  std::vector<int> numbers(blocks.x);
  std::iota(numbers.begin(), numbers.end(), 0);
  put_in_order(numbers);
  for (const int number : numbers) {
    blockIdx = {static_cast<unsigned>(number), 0, 0};
    run_block(count);
  }
}

void block_barrier(int line) {
  if (barrier_line != 0 && barrier_line != line) fail("threads wait at two barriers", line);
  barrier_line = line;
  threads[current].state = State::kAtBlockBarrier;
  to_scheduler();
}

const Brought* exchange(const void* value, size_t bytes, unsigned mask, int line) {
  const int number = current / kLanes;
  if (mask != ~0u) fail("a warp operation of part of a warp", line);
  Warp& warp = warps[number];
  if (warp.arrived != 0 && warp.line != line) fail("lanes of a warp meet at two places", line);
  warp.line = line;
  const unsigned turn = warp.epoch % 2;
  memcpy(warp.slots[turn][current % kLanes].bytes, value, bytes);
  warp.arrived |= 1u << (current % kLanes);
  if (warp.arrived == ~0u) {
    warp.arrived = 0;
    ++warp.epoch;
    for (int t = number * kLanes; t < (number + 1) * kLanes; ++t) {
      threads[t].state = State::kReady;
    }
  } else {
    threads[current].state = State::kInWarp;
    to_scheduler();
  }
  return warps[number].slots[turn];
}

void hesitate() {
  if (order_seed > 1 && generator() % 4 == 0) to_scheduler();
}

void note(Record& record, char kind, int line) {
  const bool bad = (kind != 'a' && races(record.added)) || races(record.written) ||
                   (kind != 'r' && races(record.read));
  if (bad) fail("two threads are at one place of shared memory", line);
  add(kind == 'r' ? record.read : kind == 'w' ? record.written : record.added);
}

void* shared_array(const void* key, size_t bytes, size_t count, Record** records, int line) {
  Array& array = arrays[key];
  if (!array.values) {
    array.values.reset(new unsigned char[bytes * count]);
    memset(array.values.get(), 0xa5, bytes * count);
    array.records.reset(new Record[count]);
    size_t total = 0;
    static std::map<const void*, size_t> sizes;
    sizes[key] = bytes * count;
    for (const auto& one : arrays) total += sizes[one.first];
    if (total > 48 << 10) fail("more than 48 KiB of shared memory", line);
  }
  *records = array.records.get();
  return array.values.get();
}

}  // namespace emulation

#define MMGA_EXPORT extern "C" __attribute__((visibility("default")))

MMGA_EXPORT void emulation_set_order(uint64_t seed) { emulation::order_seed = seed; }
MMGA_EXPORT uint64_t emulation_launches() { return emulation::launches; }
MMGA_EXPORT uint64_t emulation_threads() { return emulation::started; }

// Nothing here has a device: the guard guards nothing, the stream is none, no call fails.
extern "C" {
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  static char text[] = "a CUDA call failed";
  *message = error == 0 ? nullptr : text;
  return AOTI_TORCH_SUCCESS;
}
void torch_c10_cuda_free_error_msg(char*) {}
}
