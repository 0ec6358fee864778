// Threads of a GPU as fibers of one thread of the processor, which give way only where they wait.
// Which go on is drawn at random, a warp at a time, and now and then a warp or a thread sleeps
// while the others go on, so that code which lacks a barrier meets the orders that it should fear.
// The draws are the same in every run.
#pragma once

#undef _FORTIFY_SOURCE  // its checks take a jump to another stack for a mistake

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace emulation {

struct Fiber {
  static constexpr size_t kStackBytes = 128 * 1024;
  std::unique_ptr<char[]> stack;
  jmp_buf place;  // where it waits
  bool started = false, done = false;
  unsigned asleep = 0;  // for so many rounds
};

inline Fiber* running = nullptr;
inline jmp_buf scheduler;
inline const std::function<void()>* program = nullptr;  // of all fibers
inline std::minstd_rand draw;

// How long somebody sleeps, one time of `times`.
inline unsigned drawn_sleep(unsigned times) {
  return draw() % times == 0 ? unsigned(draw() % 64) : 0;
}

// Lets others run. For loops that wait.
__attribute__((noinline)) inline void give_way() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

// Behind what others wait for, so that they may be far ahead of what follows.
inline void linger() {
  running->asleep = drawn_sleep(16);
  if (running->asleep > 0) give_way();
}

inline void begin_fiber() {
  (*program)();
  running->done = true;
  _longjmp(scheduler, 1);
}

// Until it waits or is done.
__attribute__((noinline)) inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = Fiber::kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, begin_fiber, 0);
  setcontext(&context);
}

// Counts what may end somebody's wait: arrivals, copies, atomic additions.
inline uint64_t events = 1;

// Runs `count` fibers, of which `together` neighbours are drawn together. enter(i) comes before
// fiber i goes on. Aborts if all wait for each other.
inline void run_fibers(int count, int together, const std::function<void()>& each,
                       const std::function<void(int)>& enter) {
  static std::vector<std::unique_ptr<char[]>> stacks;  // kept for the next run
  std::vector<Fiber> fibers;
  fibers.resize(size_t(count));
  for (Fiber& fiber : fibers) {
    if (stacks.empty()) stacks.emplace_back(new char[Fiber::kStackBytes]);
    fiber.stack = std::move(stacks.back());
    stacks.pop_back();
  }
  struct Neighbours {
    int begin, end;
    unsigned asleep = 0;      // for so many rounds
    uint64_t waiting_at = 0;  // the events when all of them were found waiting
  };
  std::vector<Neighbours> left;
  for (int i = 0; i < count; i += together) left.push_back({i, std::min(count, i + together)});
  program = &each;
  draw.seed(1);
  while (!left.empty()) {
    bool stuck = true;
    std::shuffle(left.begin(), left.end(), draw);
    std::erase_if(left, [&](Neighbours& n) {
      if (n.waiting_at == events) return false;
      stuck = false;
      if (n.asleep == 0) n.asleep = drawn_sleep(32);
      if (n.asleep > 0) {
        --n.asleep;
        return false;
      }
      const uint64_t before = events;
      bool done = true, any_asleep = false;
      for (int i = n.begin; i < n.end; ++i) {
        Fiber& fiber = fibers[size_t(i)];
        if (fiber.done) continue;
        if (fiber.asleep == 0) fiber.asleep = drawn_sleep(2048);
        if (fiber.asleep > 0) {
          --fiber.asleep;
          done = false, any_asleep = true;
          continue;
        }
        enter(i);
        resume(fiber);
        done = done && fiber.done;
        any_asleep = any_asleep || fiber.asleep > 0;
      }
      if (events == before && !any_asleep) n.waiting_at = events;
      return done;
    });
    if (stuck) {
      std::fputs("all threads wait for each other\n", stderr);
      std::abort();
    }
  }
  for (Fiber& fiber : fibers) stacks.push_back(std::move(fiber.stack));
}

// A barrier of `fibers` fibers.
class Meeting {
 public:
  explicit Meeting(int fibers) : fibers_(fibers) {}

  // waits: or only arrives.
  void arrive(bool waits = true) {
    const int mine = phase_;
    ++events;
    if (++arrived_ == fibers_) arrived_ = 0, ++phase_;
    while (waits && phase_ == mine) give_way();
  }

 private:
  int fibers_, arrived_ = 0, phase_ = 0;
};

}  // namespace emulation
