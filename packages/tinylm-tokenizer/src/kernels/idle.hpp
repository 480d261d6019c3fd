// What calls need for their work, kept for later calls: a thread takes one and gives it back. No Python here.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace tinylm {

template <class Worker>
class Idle {
  public:
    // One that nobody uses; nothing: all of them are in use.
    std::unique_ptr<Worker> take() const {
        const std::lock_guard lock(shelf_->mutex);
        if (shelf_->workers.empty()) return nullptr;
        std::unique_ptr<Worker> worker = std::move(shelf_->workers.back());
        shelf_->workers.pop_back();
        return worker;
    }

    void give_back(std::unique_ptr<Worker> worker) const {
        const std::lock_guard lock(shelf_->mutex);
        shelf_->workers.push_back(std::move(worker));
    }

    // In a process that was forked: a thread that is not there may have held the lock and left the list half changed.
    // Both are left as they are.
    void after_fork() {
        [[maybe_unused]] const Shelf* left = shelf_.release();
        shelf_ = std::make_unique<Shelf>();
    }

  private:
    struct Shelf {
        std::mutex mutex;
        std::vector<std::unique_ptr<Worker>> workers;
    };
    std::unique_ptr<Shelf> shelf_ = std::make_unique<Shelf>();
};

}  // namespace tinylm
