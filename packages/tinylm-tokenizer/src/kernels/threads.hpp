// Starting threads where the system may refuse some. No Python here.
#pragma once

#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace tinylm {

// Runs work(1), work(2), ... work(more), each on a thread of its own; the caller joins them. Where the system gives no
// more threads, those that have started do: leaving by an exception while they run would end the process.
template <class Work>
std::vector<std::thread> start_threads(size_t more, const Work& work) {
    std::vector<std::thread> threads;
    threads.reserve(more);
    try {
        for (size_t number = 1; number <= more; number++) threads.emplace_back(work, number);
    } catch (const std::exception&) {  // std::system_error, std::bad_alloc
    }
    return threads;
}

inline void rethrow_first(const std::vector<std::exception_ptr>& thrown) {
    for (const std::exception_ptr& error : thrown)
        if (error) std::rethrow_exception(error);
}

}  // namespace tinylm
