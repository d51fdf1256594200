// The threads that share work (shares.h): started when first needed, never ended, asleep while
// there is nothing to do.
#include "cpu/shares.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <cinttypes>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <torch/csrc/stable/ops.h>

#include "common/kernel_threads.h"

namespace mmga {
namespace {

// How the calling thread rounds and whether it flushes subnormal numbers: helpers do likewise.
#if defined(__x86_64__)
using FloatMode = unsigned int;
FloatMode float_mode() { return _mm_getcsr(); }
void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
void relax() { _mm_pause(); }
#else
using FloatMode = int;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
void relax() {}
#endif

// A thread and the processor that it is on.
class Seat {
 public:
#if defined(__linux__)
  Seat() : thread_(pthread_self()), processor_(sched_getcpu()) {}

  // Moves the calling thread to another processor if it is on this one and another may have room:
  // the scheduler leaves two threads on one processor for a tenth of a second and longer where a
  // busy process has another.
  void leave() const {
    if (sched_getcpu() != processor_) return;
    cpu_set_t all;
    if (pthread_getaffinity_np(thread_, sizeof all, &all) != 0) return;
    if (CPU_COUNT(&all) < 2 || runnable() > CPU_COUNT(&all) + 1) return;
    cpu_set_t others = all;
    CPU_CLR(processor_, &others);
    pthread_setaffinity_np(pthread_self(), sizeof others, &others);
    pthread_setaffinity_np(pthread_self(), sizeof all, &all);  // it may go where it likes later
  }

 private:
  // Returns how many threads of the machine run or could run; many if it does not say.
  static int64_t runnable() {
    static const int loads = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    char text[128] = {};
    int64_t count;
    if (pread(loads, text, sizeof text - 1, 0) <= 0) return INT64_MAX;
    return sscanf(text, "%*f %*f %*f %" SCNd64, &count) == 1 ? count : INT64_MAX;
  }

  pthread_t thread_;
  int processor_;
#else
  void leave() const {}
#endif
};

// Sets the threads of torch's functions that the calling thread calls, those of MKL as well; 0 for
// MKL: as many as others have. (torch.set_num_threads() would set those of others, too.) Returns
// false where torch has no OpenMP.
bool set_torch_threads(int64_t threads, int64_t of_mkl) {
  static const auto set =
      reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  static const auto set_mkl =
      reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local"));
  if (set == nullptr) return false;
  set(static_cast<int>(threads));
  if (set_mkl != nullptr) set_mkl(static_cast<int>(of_mkl));
  return true;
}

// Calls of run_with_helpers() at work.
struct Job {
  void (*body)(void*);
  void* context;
  FloatMode mode;
  Seat caller;
  int64_t room;                    // helpers that may still come
  std::atomic<int64_t> inside{0};  // helpers at work
  std::exception_ptr error;
};

class Crew {
 public:
  // Serves the process that makes it: threads do not survive a fork.
  Crew() : process_(getpid()) {}
  bool ours() const { return process_ == getpid(); }

  void run(int64_t helpers, void (*body)(void*), void* context) {
    Job job{body, context, float_mode(), Seat(), helpers, {}, {}};
    open(job);
    std::exception_ptr error;
    try {
      body(context);
    } catch (...) {
      error = std::current_exception();
    }
    close(job);
    if (error == nullptr) error = job.error;
    if (error != nullptr) std::rethrow_exception(error);
  }

 private:
  // How long a helper without a job stays awake, about 250 us: longer than Python takes from one
  // kernel to the next, and short beside the turns of other processes. And the same for who waits
  // for helpers, about 50 us: longer than most pieces take.
  static constexpr int kAwake = 15000, kWaits = 3000;

  void open(Job& job) {
    int64_t woken;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(job.room);
      woken = std::min(job.room, asleep_);
      jobs_.push_back(&job);
      opened_.fetch_add(1, std::memory_order_release);
    }
    for (; woken > 0; --woken) work_.notify_one();
  }

  // Lets no more helpers come and waits for those who came.
  void close(Job& job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    }
    for (int i = 0; i < kWaits && job.inside.load(std::memory_order_acquire) > 0; ++i) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [&] { return job.inside.load(std::memory_order_relaxed) == 0; });
  }

  // Starts threads until there are `helpers`, or as many as the system gives.
  void grow(int64_t helpers) {
    if (threads_ >= helpers) return;
    sigset_t all, former;  // signals are for the threads of Python
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    try {
      for (; threads_ < helpers; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &former, nullptr);
  }

  void serve() {
    torch::stable::get_num_threads();  // sets them when first called
    set_torch_threads(1, 1);           // of torch's functions that a kernel calls
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      Job* job = with_room();
      if (job == nullptr) {
        wait(lock);
        continue;
      }
      --job->room;
      job->inside.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job->caller.leave();
      std::exception_ptr error;
      set_float_mode(job->mode);
      try {
        job->body(job->context);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error != nullptr && job->error == nullptr) job->error = error;
      if (job->inside.fetch_sub(1, std::memory_order_release) == 1) left_.notify_all();
    }
  }

  Job* with_room() const {
    for (Job* job : jobs_) {
      if (job->room > 0) return job;
    }
    return nullptr;
  }

  // Waits for a job: a moment awake, as jobs often follow each other at once, then asleep.
  void wait(std::unique_lock<std::mutex>& lock) {
    const int64_t seen = opened_.load(std::memory_order_relaxed);
    lock.unlock();
    for (int i = 0; i < kAwake; ++i) {
      if (opened_.load(std::memory_order_acquire) != seen) break;
      relax();
    }
    lock.lock();
    if (opened_.load(std::memory_order_relaxed) != seen) return;
    ++asleep_;
    work_.wait(lock, [&] { return opened_.load(std::memory_order_relaxed) != seen; });
    --asleep_;
  }

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable work_, left_;
  std::vector<Job*> jobs_;
  std::atomic<int64_t> opened_{0};  // jobs so far
  int64_t threads_ = 0, asleep_ = 0;
};

// The crew of this process; that of a parent is left as it is.
Crew& crew() {
  static std::atomic<Crew*> current{nullptr};
  Crew* one = current.load(std::memory_order_acquire);
  while (one == nullptr || !one->ours()) {
    Crew* fresh = new Crew;
    if (current.compare_exchange_strong(one, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
  }
  return *one;
}

// Threads of the kernels while torch's own functions have one; 0: as many as torch's.
thread_local int64_t held = 0;

}  // namespace

int64_t kernel_threads() {
  return held > 0 ? held : std::max<int64_t>(1, torch::stable::get_num_threads());
}

bool threads_held() { return held > 0; }

bool hold_threads() {
  const int64_t threads = kernel_threads();
  if (held > 0 || threads == 1 || !set_torch_threads(1, 1)) return false;
  held = threads;
  return true;
}

bool release_threads() {
  if (held == 0) return false;
  set_torch_threads(held, 0);
  held = 0;
  return true;
}

void run_with_helpers(int64_t helpers, void (*body)(void*), void* context) {
  if (helpers > 0) {
    crew().run(helpers, body, context);
  } else {
    body(context);
  }
}

}  // namespace mmga
