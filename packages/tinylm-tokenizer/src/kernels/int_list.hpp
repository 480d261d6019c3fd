// Ids as Python's lists of ints. For the .cpp files at the border to Python; everything here needs the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "large_pages.hpp"

namespace tinylm {

// A list of Python's ints that is filled without its growing rules. Python's garbage collector does not look at it:
// integers refer to nothing, and visiting them took a third of the time of encoding short texts.
class IntList {
  public:
    static constexpr size_t kFirst = 1 << 12;  // a long text's list begins with so many places

    explicit IntList(size_t expected) : list_(nanobind::steal<nanobind::list>(PyList_New(0))) {
        if (!list_.is_valid()) throw nanobind::python_error();
        PyObject_GC_UnTrack(list_.ptr());
        reserve(expected);
    }

    // share: which part of the text the ids are of, with these. A list that is too short gets as long as the whole will
    // probably want and an eighth more, which costs nothing as long as nobody writes there: what has to move is copied to
    // small pages.
    PyObject** room_for(size_t more, double share = 1) {
        const size_t size = size_t(Py_SIZE(list_.ptr())), least = size + more;
        if (least > ready_) {
            if (least > size_t(list()->allocated) && !grow(size_t(double(least) / share * kMargin)) &&
                !grow(size_t(double(least) * kMargin)))  // no memory for so much
                reserve(least);
            ready_ = pages_.ready(least * sizeof(PyObject*)) / sizeof(PyObject*);
        }
        return list()->ob_item + size;
    }

    void grew_by(size_t more) { Py_SET_SIZE(list(), Py_SIZE(list_.ptr()) + Py_ssize_t(more)); }

    nanobind::list done() {
        if (list()->allocated - Py_SIZE(list_.ptr()) > 64) reserve(size_t(Py_SIZE(list_.ptr())));
        return std::move(list_);
    }

  private:
    static constexpr double kMargin = 1.125;

    PyListObject* list() { return reinterpret_cast<PyListObject*>(list_.ptr()); }

    void reserve(size_t size) {
        if (size && !grow(size)) throw std::bad_alloc();
    }

    bool grow(size_t size) {
        pages_.stop();
        void* items = PyMem_Realloc(list()->ob_item, size * sizeof(PyObject*));
        if (!items) return false;
        pages_.start(items, size * sizeof(PyObject*), size_t(Py_SIZE(list_.ptr())) * sizeof(PyObject*));
        list()->ob_item = static_cast<PyObject**>(items);
        list()->allocated = Py_ssize_t(size);
        return true;
    }

    nanobind::list list_;
    size_t ready_ = 0;  // how many may be written without asking `pages_`
    PageByPage pages_;
};

// id → the int, made at its first use and shared by all lists: that is quicker than making it again, and takes no memory.
class SharedInts {
  public:
    explicit SharedInts(size_t size = 0) : numbers_(size) {}
    SharedInts(const SharedInts&) = delete;
    SharedInts& operator=(const SharedInts&) = delete;
    ~SharedInts() {
        for (PyObject* number : numbers_) Py_XDECREF(number);
    }

    void resize(size_t size) { numbers_.resize(size); }

    void append(IntList& list, const uint32_t* ids, size_t count, double share = 1) {
        PyObject** items = list.room_for(count, share);
        for (size_t i = 0; i < count; i++) {
            PyObject* number = ids[i] < numbers_.size() ? numbers_[ids[i]] : nullptr;
            items[i] = number ? Py_NewRef(number) : make(ids[i]);
        }
        list.grew_by(count);
    }

  private:
    [[gnu::noinline]] PyObject* make(uint32_t id) {
        PyObject* number = PyLong_FromUnsignedLong(id);
        if (!number) throw nanobind::python_error();
        if (id < numbers_.size()) numbers_[id] = Py_NewRef(number);
        return number;
    }

    std::vector<PyObject*> numbers_;
};

}  // namespace tinylm
