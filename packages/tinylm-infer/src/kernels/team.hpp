// A few threads that run one function together, and wait for each other without sleeping. No Python here.
//
// A decoding step of a small model takes a few milliseconds and has about a hundred places where all threads must have
// finished one matrix before the next: waking a sleeping thread at each would cost more than it brings. So threads
// sleep between steps only, and within one they spin, giving the core away when that takes long.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinylm {

class Team {
  public:
    explicit Team(int wanted) {
        try {
            while (int(threads_.size()) + 1 < wanted)
                threads_.emplace_back([this, number = int(threads_.size()) + 1] { work(number); });
        } catch (const std::exception&) {  // the system gives no more: those that have started do
        }
    }

    ~Team() {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        begins_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return int(threads_.size()) + 1; }

    // Runs task(0), task(1), ... task(size() - 1), each on a thread of its own, task(0) on the caller's. The task must
    // not throw.
    void run(const std::function<void(int)>& task) {
        if (!threads_.empty()) {
            const std::lock_guard lock(mutex_);
            task_ = &task;
            ++turn_;
        }
        begins_.notify_all();
        task(0);
        barrier();
    }

    // Called by every thread of a running task: none goes on before all are here.
    void barrier() {
        if (threads_.empty()) return;
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.fetch_add(1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins > 20000) std::this_thread::yield();  // some tens of microseconds: the others have no core
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }

  private:
    void work(int number) {
        for (unsigned seen = 0;;) {
            const std::function<void(int)>* task;
            {
                std::unique_lock lock(mutex_);
                begins_.wait(lock, [&] { return ending_ || turn_ != seen; });
                if (ending_) return;
                seen = turn_;
                task = task_;
            }
            (*task)(number);
            barrier();
        }
    }

    std::mutex mutex_;
    std::condition_variable begins_;
    const std::function<void(int)>* task_ = nullptr;
    unsigned turn_ = 0;
    bool ending_ = false;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> phase_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tinylm
