// The scheduler: runs the threads of a block as fibers, lets them meet at barriers and warp operations, finds those that
// cannot.
#include <algorithm>
#include <exception>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>

#include "block.h"

namespace fastconv::simt {

Block block;

namespace {

Options the_options;
Architecture the_architecture = sm_90;

std::vector<Stack> stacks;
Context scheduler;
std::exception_ptr failure;
std::mt19937 generator;
std::vector<std::pair<const void*, size_t>> static_variables;  // key, offset

std::string text(const Dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

std::string who(const Thread& thread) {
  return "kernel " + std::string(block.kernel) + ", block " + text(block.index) + ", thread " + text(thread.coordinates);
}

// Takes the next thread to run; null if none is ready.
Thread* next_ready() {
  if (block.ready.empty()) return nullptr;
  if (the_options.order == Order::random) std::swap(block.ready.front(), block.ready[generator() % block.ready.size()]);
  int index;
  if (the_options.order == Order::reverse) {
    index = block.ready.back();
    block.ready.pop_back();
  } else {
    index = block.ready.front();
    block.ready.pop_front();
  }
  return &block.threads[size_t(index)];
}

void leave_to(Thread* from, Context& to, Thread* next) {
  block.current = next;
  switch_context(from->context, to);
  block.current = from;
}

[[noreturn]] void deadlock() {
  std::string what = "deadlock: no thread of the block can go on";
  int listed = 0;
  for (const Thread& thread : block.threads) {
    if (thread.wait != Wait::block_barrier && thread.wait != Wait::warp_operation) continue;
    if (++listed > 4) break;
    what += "\n  thread " + text(thread.coordinates) + " waits at " +
            (thread.wait == Wait::block_barrier ? "__syncthreads, " : "a warp operation, ") + thread.site.text();
  }
  fault(what, block.current ? block.current->site : Site{});
}

// Lets other threads run until somebody makes the current one ready again.
void wait(Wait reason, Site site) {
  Thread* me = block.current;
  me->wait = reason;
  me->site = site;
  Thread* next = next_ready();
  if (!next) deadlock();
  leave_to(me, next->context, next);
}

void make_ready(Thread& thread) {
  thread.wait = Wait::none;
  if (&thread != block.current) block.ready.push_back(thread.index);
}

void exit_thread() {
  Thread* me = block.current;
  const auto in_flight = [](const std::vector<PendingCopy>& group) { return !group.empty(); };
  if (!me->open_group.empty() || std::any_of(me->groups.begin(), me->groups.end(), in_flight))
    fault("the thread exits with cp.async in flight: wait for it", Site{});
  if (block.at_barrier) fault("the thread exits while others wait at __syncthreads, " + block.barrier_site.text(), Site{});
  Warp& warp = block.warps[size_t(me->warp)];
  for (const Meeting& meeting : warp.meetings)
    if (meeting.mask >> me->lane & 1)
      fault("the thread exits while lanes of its warp wait for it at a warp operation, " + meeting.site.text(), Site{});
  me->wait = Wait::finished;
  --block.live;
  warp.live &= ~(1u << me->lane);
  Thread* next = next_ready();
  if (!next && block.live) deadlock();
  leave_to(me, next ? next->context : scheduler, next);
}

void fiber_main() {
  block.in_kernel = true;
  block.body.call(block.body.arguments);
  block.in_kernel = false;
  exit_thread();
  __builtin_unreachable();  // an exited thread is never resumed
}

void run_block(Dim3 index, size_t dynamic_shared) {
  block.index = index;
  shared::reset(dynamic_shared);
  static_variables.clear();
  block.ready.clear();
  block.live = int(block.threads.size());
  block.at_barrier = 0;
  block.interval = 1;
  for (Warp& warp : block.warps) warp = {0, 1, {}};
  for (Thread& thread : block.threads) {
    thread.wait = Wait::none;
    thread.groups.clear();
    thread.open_group.clear();
    block.warps[size_t(thread.warp)].live |= 1u << thread.lane;
    stacks[size_t(thread.index)].prepare(thread.context, fiber_main);
    block.ready.push_back(thread.index);
  }
  Thread* first = next_ready();
  block.current = first;
  switch_context(scheduler, first->context);
  block.current = nullptr;
  block.in_kernel = false;
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

void check_limits(Dim3 grid, Dim3 threads, size_t dynamic_shared) {
  const Architecture& gpu = the_architecture;
  const auto refuse = [&](const std::string& what) {
    throw KernelFault("kernel " + std::string(block.kernel) + ": " + what + " (" + gpu.name + ")");
  };
  if (!grid.x || !grid.y || !grid.z || !threads.x || !threads.y || !threads.z)
    refuse("empty launch: grid " + text(grid) + ", block " + text(threads));
  if (grid.x > gpu.grid.x || grid.y > gpu.grid.y || grid.z > gpu.grid.z)
    refuse("grid " + text(grid) + " exceeds " + text(gpu.grid));
  if (threads.count() > unsigned(gpu.threads_a_block))
    refuse("block " + text(threads) + " exceeds " + std::to_string(gpu.threads_a_block) + " threads");
  if (threads.z > 64) refuse("block " + text(threads) + " exceeds 64 in z");
  if (dynamic_shared > gpu.dynamic_shared)
    refuse(std::to_string(dynamic_shared) + " bytes of dynamic shared memory exceed " + std::to_string(gpu.dynamic_shared));
}

}  // namespace

Options& options() { return the_options; }
Architecture& architecture() { return the_architecture; }
Dim3 thread_index() { return block.current->coordinates; }
Dim3 block_index() { return block.index; }
Dim3 block_size() { return block.size; }
Dim3 grid_size() { return block.grid; }
int lane_index() { return block.current->lane; }

std::string Site::text() const { return line ? std::string(file) + ":" + std::to_string(line) : "an unknown place"; }

void fault(const std::string& what, const Site& site) {
  const InRuntime guard;
  Thread* me = block.current;
  if (!me) throw KernelFault(what);
  failure = std::make_exception_ptr(KernelFault(who(*me) + (site.line ? ", " + site.text() : "") + ": " + what));
  leave_to(me, scheduler, nullptr);
  __builtin_unreachable();  // the launch is abandoned and this fiber with it
}

void run_grid(const char* kernel, Dim3 grid, Dim3 threads, size_t dynamic_shared, const Body& body) {
  static std::mutex one_launch;
  const std::lock_guard<std::mutex> lock(one_launch);
  block.kernel = kernel;
  check_limits(grid, threads, dynamic_shared);
  block.body = body;
  block.size = threads;
  block.grid = grid;
  generator.seed(the_options.seed);

  const int count = int(threads.count());
  while (int(stacks.size()) < count) stacks.emplace_back();
  block.threads = std::vector<Thread>(size_t(count));
  block.warps = std::vector<Warp>(size_t(count + 31) / 32);
  for (int i = 0; i < count; ++i) {
    Thread& thread = block.threads[size_t(i)];
    thread.index = i;
    thread.warp = i / 32;
    thread.lane = i % 32;
    thread.stack = &stacks[size_t(i)];
    thread.coordinates = {unsigned(i) % threads.x, unsigned(i) / threads.x % threads.y, unsigned(i) / (threads.x * threads.y)};
  }

  std::vector<uint64_t> blocks(grid.count());
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  if (the_options.order == Order::reverse) std::reverse(blocks.begin(), blocks.end());
  if (the_options.order == Order::random) std::shuffle(blocks.begin(), blocks.end(), generator);
  for (const uint64_t i : blocks)
    run_block({unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t{grid.x} * grid.y))}, dynamic_shared);
}

void sync_block(Site site) {
  const InRuntime guard;
  if (block.at_barrier && !(block.barrier_site == site))
    fault("divergent __syncthreads: other threads of the block wait at " + block.barrier_site.text(), site);
  if (block.live != int(block.threads.size())) fault("__syncthreads after threads of the block have exited", site);
  block.barrier_site = site;
  if (++block.at_barrier < block.live) return wait(Wait::block_barrier, site);
  ++block.interval;
  block.at_barrier = 0;
  for (Thread& thread : block.threads)
    if (thread.wait == Wait::block_barrier) make_ready(thread);
}

void warp_operation(unsigned mask, WarpOperation operation, void* operand, Site site) {
  const InRuntime guard;
  Thread* me = block.current;
  Warp& warp = block.warps[size_t(me->warp)];
  const unsigned my_bit = 1u << me->lane;
  if (!(mask & my_bit)) fault("wrong mask: the calling lane is not in it", site);
  // Lanes beyond the last thread of a block whose size is no multiple of 32 do not exist; naming them is allowed.
  const int in_warp = std::min(32, int(block.threads.size()) - me->warp * 32);
  const unsigned existing = in_warp == 32 ? ~0u : (1u << in_warp) - 1;
  const unsigned needed = mask & existing;
  if (needed & ~warp.live) fault("wrong mask: it names lanes that have exited", site);

  me->operand = operand;
  me->site = site;
  Meeting* meeting = nullptr;
  for (Meeting& other : warp.meetings) {
    if (other.mask == mask && other.operation == operation && other.site == site && !(other.arrived & my_bit)) {
      meeting = &other;
    } else if (other.mask & mask) {
      fault(other.mask == mask ? "divergent warp: other lanes wait at another operation, " + other.site.text()
                               : "wrong mask: lanes of it wait with another mask, " + other.site.text(),
            site);
    }
  }
  if (!meeting) {
    warp.meetings.push_back({mask, 0, operation, site});
    meeting = &warp.meetings.back();
  }
  meeting->arrived |= my_bit;
  if ((meeting->arrived & needed) != needed) return wait(Wait::warp_operation, site);

  void* operands[32] = {};
  for (int lane = 0; lane < in_warp; ++lane)
    if (needed >> lane & 1) operands[lane] = block.threads[size_t(me->warp * 32 + lane)].operand;
  warp.meetings.erase(warp.meetings.begin() + (meeting - warp.meetings.data()));
  if (operation) operation(operands);
  for (int lane = 0; lane < in_warp; ++lane)
    if (needed >> lane & 1) make_ready(block.threads[size_t(me->warp * 32 + lane)]);
}

void sync_warp(unsigned mask, Site site) {
  Warp& warp = block.warps[size_t(block.current->warp)];
  static const WarpOperation barrier = [](void* const(&)[32]) {
    // Orders the memory accesses of the lanes. Only a barrier of all live lanes is credited: less would need a clock a lane.
    ++block.warps[size_t(block.current->warp)].epoch;
  };
  const bool whole = (mask & warp.live) == warp.live;
  warp_operation(mask, whole ? barrier : nullptr, nullptr, site);
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  const InRuntime guard;
  for (const auto& [known, offset] : static_variables)
    if (known == key) return shared::at(offset);
  const size_t offset = shared::allocate(bytes, alignment);
  static_variables.emplace_back(key, offset);
  return shared::at(offset);
}

void* dynamic_shared() { return shared::at(0); }

namespace detail {

void shuffle(void* const (&operands)[32]) {
  uint64_t values[32];
  bool present[32];
  for (int lane = 0; lane < 32; ++lane) {
    present[lane] = operands[lane] != nullptr;
    if (present[lane]) values[lane] = static_cast<Shuffle*>(operands[lane])->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!present[lane]) continue;
    auto* operand = static_cast<Shuffle*>(operands[lane]);
    // Reading a lane that does not take part is undefined on a GPU.
    if (!present[operand->source & 31])
      fault("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(operand->source) +
                ", which is not in the mask",
            block.current->site);
    operand->value = values[operand->source & 31];
  }
}

void ballot(void* const (&operands)[32]) {
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (operands[lane] && static_cast<Vote*>(operands[lane])->value) bits |= 1u << lane;
  for (void* operand : operands)
    if (operand) static_cast<Vote*>(operand)->value = bits;
}

void reduce(void* const (&operands)[32]) {
  int64_t result = 0;
  bool first = true;
  for (void* operand : operands) {
    if (!operand) continue;
    const auto [value, kind] = *static_cast<Reduce*>(operand);
    if (first)
      result = value;
    else if (kind == Reduction::add)
      result += value;
    else if (kind == Reduction::min)
      result = std::min(result, value);
    else if (kind == Reduction::max)
      result = std::max(result, value);
    else if (kind == Reduction::bit_and)
      result &= value;
    else if (kind == Reduction::bit_or)
      result |= value;
    else
      result ^= value;
    first = false;
  }
  for (void* operand : operands)
    if (operand) static_cast<Reduce*>(operand)->value = result;
}

}  // namespace detail
}  // namespace fastconv::simt
