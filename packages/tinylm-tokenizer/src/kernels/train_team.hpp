// A few threads that do the same job on different parts of the data, again and again. For jobs of some ten microseconds:
// between two jobs the threads first wait without sleeping, then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "threads.hpp"

namespace tinylm {

class Team {
  public:
    // Of at most `size` threads: as many as the system gives.
    explicit Team(size_t size) : thrown_(std::max<size_t>(size, 1)) {
        threads_ = start_threads(thrown_.size() - 1, [this](size_t number) { work(number); });
    }
    Team(const Team&) = delete;
    ~Team() {
        job_ = nullptr;
        start();
        for (std::thread& thread : threads_) thread.join();
    }

    size_t size() const { return threads_.size() + 1; }

    // Calls job(0), job(1), ... job(size - 1), each on a thread of its own, the first on this one. What one of
    // them throws is thrown on when all have ended.
    void run(const std::function<void(size_t)>& job) {
        job_ = &job;
        thrown_.assign(thrown_.size(), nullptr);
        working_.store(threads_.size(), std::memory_order_relaxed);
        start();
        attempt(0);
        for (size_t spins = 0; working_.load(std::memory_order_acquire) != 0; spins++)
            if (spins > kSpins) std::this_thread::yield();
        rethrow_first(thrown_);
    }

  private:
    static constexpr size_t kPatience = 200'000;  // looks for a next job before sleeping: more than there lie between jobs
    static constexpr size_t kSpins = 4000;        // looks for the others' end before giving the core away: it may be theirs

    void start() {
        round_.fetch_add(1);
        if (sleeping_.load() != 0) round_.notify_all();  // a system call, as long as a small job: only when it is needed
    }

    void attempt(size_t number) {
        try {
            (*job_)(number);
        } catch (...) {
            thrown_[number] = std::current_exception();
        }
    }

    void work(size_t number) {
        for (unsigned seen = 0;;) {
            for (size_t spins = 0; round_.load(std::memory_order_acquire) == seen; spins++) {
                if (spins < kPatience) continue;
                sleeping_.fetch_add(1);
                round_.wait(seen);
                sleeping_.fetch_sub(1);
            }
            seen++;
            if (!job_) return;
            attempt(number);
            working_.fetch_sub(1, std::memory_order_release);
        }
    }

    const std::function<void(size_t)>* job_ = nullptr;
    // What somebody waits for has a cache line of its own: each write to it takes the line away from who reads it.
    alignas(128) std::atomic<unsigned> round_ = 0;
    alignas(128) std::atomic<size_t> working_ = 0;
    alignas(128) std::atomic<size_t> sleeping_ = 0;
    std::vector<std::exception_ptr> thrown_;  // by each thread
    std::vector<std::thread> threads_;
};

}  // namespace tinylm
