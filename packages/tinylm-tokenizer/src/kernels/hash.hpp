// The hash of a 64-bit key, for all tables of the kernels. No Python here.
#pragma once

#include <cstdint>

namespace tinylm {

inline uint64_t mix(uint64_t key) {  // the finaliser of splitmix64: every bit of the key moves every bit of the hash
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9;
    key = (key ^ key >> 27) * 0x94D049BB133111EB;
    return key ^ key >> 31;
}

}  // namespace tinylm
